"""Replayed decoding steps sample what plain ones do. A recorder of operations stands in for CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from agentrl.core.engine import Decoding
from agentrl.rollout import key_values, replays, transformers_sampler
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed
from agentrl.rollout.replays import Replays, difference
from agentrl.rollout.sampler import Request, Turn
from agentrl.rollout.transformers_sampler import TransformersSampler
from tests.support.helpers import small
from tests.support.networks import VOCABULARY, network
from tests.support.recorder import Recorder

END = VOCABULARY - 1


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record what comes for the second time, and compare one replay: the turns of these tests are short."""
    monkeypatch.setattr(replays, "PLAIN", 1)
    monkeypatch.setattr(replays, "CHECKED", 1)


@torch.no_grad()
def play(model: Any, decoding: Decoding, record: Any, prompts: dict[int, int], budget: int = 8192) -> dict[Any, Turn]:
    """Sample three turns of up to 24 tokens after prompts (length: number of rollouts), by episode and turn."""
    draw = Random(5)
    contexts = [ids for size, rollouts in prompts.items() for ids in [draw.choices(range(1, END), k=size)] * rollouts]
    torch.manual_seed(3)
    found: dict[Any, Turn] = {}
    with packed(model):
        passes = None if record is None else Replays(model, record)
        session = Continuous(model, Draw(decoding), [END], 512, 24, budget, passes)
        new = [Request(episode, ids, 9 + 3 * episode % 16) for episode, ids in enumerate(contexts)]
        waited = {one.episode: (one, 0) for one in new}
        while waited:
            ended = session.sample(new)
            new = []
            for episode, turn in ended.items():
                request, number = waited.pop(episode)
                found[episode, number] = turn
                if number < 2:
                    new.append(Request(episode, [*request.ids, *turn.ids, 7, 8], 8 + episode % 9))
                    waited[episode] = new[-1], number + 1
    return found


def assert_same(model: Any, prompts: dict[int, int], budget: int = 8192) -> Recorder:
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for decoding in (Decoding(0.0), Decoding(1.0, 1.0)):
            plain, found = (play(model, decoding, record, prompts, budget) for record in (None, recorder))
            assert {key: turn.ids for key, turn in found.items()} == {key: turn.ids for key, turn in plain.items()}
            for key, turn in plain.items():
                if turn.logprobs is not None:
                    torch.testing.assert_close(found[key].logprobs, turn.logprobs, atol=1e-5, rtol=1e-5)
    return recorder


@pytest.mark.parametrize(
    "prompts",
    [{40: 4, 11: 3}, {45: 3, 9: 5, 70: 4}, {1: 1, 30: 3}, {20: 1}, {12: 1, 13: 1, 50: 1}, {5: 11}, {33: 2, 34: 9}],
    ids=str,
)
def test_replayed_steps_sample_what_plain_ones_do(prompts: dict[int, int]) -> None:
    """Prompts of one token and of many, shared or not; rows that come, grow and leave."""
    recorder = assert_same(network(num_hidden_layers=2).eval(), prompts)
    assert recorder.replayed > 3 * recorder.recorded > 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_other_families(family: str) -> None:
    assert assert_same(network(family).eval(), {40: 4, 11: 3}).replayed


def test_adapters() -> None:
    model: Any = get_peft_model(network(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(number))
    assert assert_same(model, {40: 4, 11: 3}).replayed


def test_a_small_cache_that_gives_rows_up() -> None:
    recorder = assert_same(network().eval(), {40: 4, 90: 3}, budget=320)
    assert recorder.replayed


def test_a_recording_serves_rows_that_leave_and_come() -> None:
    """12 rows whose turns end one by one: one recording for 9 rows and more, and one for 5 to 8, 3 to 4, 2, and 1."""
    recorder = Recorder()
    play(network().eval(), Decoding(1.0, 1.0), recorder, {30: 12})
    assert recorder.recorded <= 5 and recorder.replayed > 20


def test_a_cache_that_is_resized_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "SPARE", 0)
    recorder = assert_same(network().eval(), {40: 4, 11: 3, 70: 2})
    assert recorder.replayed > recorder.recorded > 4


def test_as_set_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are recorded when they come for the fourth time, and two replays of a recording are compared."""
    monkeypatch.undo()
    recorder = assert_same(network().eval(), {40: 4, 11: 3, 70: 2})
    assert recorder.replayed > 2 * recorder.recorded > 0


def test_few_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    class Counted(Replays):
        def _try(self, *step: Any) -> None:
            super()._try(*step)
            kept.append(len(self._steps))

    monkeypatch.setitem(globals(), "Replays", Counted)
    monkeypatch.setattr(replays, "KEPT", 2)
    recorder = assert_same(network().eval(), {40: 4, 11: 3, 70: 2})
    assert max(kept) == 2 < recorder.recorded


def test_one_wrong_row_among_many_is_a_difference() -> None:
    one = torch.ones(500, 7)
    other = one.clone()
    other[3] *= -1
    assert difference(one, other) == pytest.approx(2) and difference(one, one) == 0
    other[3, 0] = torch.nan
    assert not difference(one, other) <= 0.05


def test_a_wrong_replay_is_found_and_the_plain_pass_goes_on() -> None:
    model = network().eval()
    with pytest.warns(UserWarning, match="decoding steps are not replayed.*wrong by"):
        found = play(model, Decoding(1.0, 1.0), lambda function: wrong(Recorder()(function)), {40: 4})
    assert found == play(model, Decoding(1.0, 1.0), None, {40: 4})


def wrong(recorded: tuple[Callable[[], None], Tensor]) -> tuple[Callable[[], None], Tensor]:
    again, result = recorded

    def spoil() -> None:
        again()
        result.mul_(1.1)

    return spoil, result


def test_a_pass_that_cannot_be_recorded_goes_on_plainly() -> None:
    def refuse(function: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = network().eval()
    with pytest.warns(UserWarning, match="not replayed, which is slower: operation not permitted"):
        found = play(model, Decoding(0.0), refuse, {40: 4})
    assert found == play(model, Decoding(0.0), None, {40: 4})


@pytest.mark.parametrize(
    ("engine", "device", "experts", "fsdp", "replayed"),
    [
        ("compiled", "cuda", None, False, True),
        ("packed", "cuda", None, False, False),
        ("compiled", "cpu", None, False, False),
        ("compiled", "cuda", 2, False, False),
        ("compiled", "cuda", None, True, False),
    ],
)
def test_what_is_replayed(engine: str, device: str, experts: int | None, fsdp: bool, replayed: bool) -> None:
    assert bool(sampler(engine, device, experts, fsdp)._replayed) == replayed


def test_replays_that_failed_are_not_tried_in_the_next_session(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def failing(model: Any) -> Any:
        made.append(SimpleNamespace(works=False, forward=None))
        return made[-1]

    monkeypatch.setattr(transformers_sampler, "Replays", failing)
    one = sampler("compiled", "cuda", None, False)
    for _ in range(2):
        with one.session(Decoding(0.0)):
            pass
    assert len(made) == 1


def sampler(engine: str, device: str, experts: int | None, fsdp: bool) -> TransformersSampler:
    """A sampler whose accelerator says that it has this device. Nothing is put there."""
    model = network()
    model.config.num_experts_per_tok = experts
    plugin = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2) if fsdp else None, deepspeed_plugin=None)
    accelerator: Any = SimpleNamespace(
        device=torch.device(device),
        num_processes=1,
        unwrap_model=lambda one, *_, **__: one,
        state=plugin,
    )
    tokenizer: Any = SimpleNamespace(eos_token_id=END)
    config = small("algo=grpo", f"trainer.engine={engine}", "hardware.bf16=false")
    return TransformersSampler(lambda: model, accelerator, tokenizer, config)
