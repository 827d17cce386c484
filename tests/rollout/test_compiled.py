"""Compiled layers sample what uncompiled ones do, with few graphs for rows that come, grow and leave."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agentrl.core.engine import Decoding
from agentrl.rollout import compiled
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed
from agentrl.rollout.sampler import Request, Turn
from tests.support.networks import VOCABULARY, network

END = VOCABULARY - 1


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """Begin without graphs, and count those that a test compiles."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@torch.no_grad()
def play(model: Any, decoding: Decoding, compiled: bool, prompts: dict[int, int], turns: int = 2) -> dict[Any, Turn]:
    """Sample turns of up to 8 tokens after prompts (length: number of rollouts), by episode and turn."""
    draw = Random(5)
    contexts = [ids for size, rollouts in prompts.items() for ids in [draw.choices(range(1, END), k=size)] * rollouts]
    torch.manual_seed(3)
    found: dict[Any, Turn] = {}
    with packed(model, compiled):
        session = Continuous(model, Draw(decoding), [END], 512, 8, 4096)
        new = [Request(episode, ids, 2 + episode % 7) for episode, ids in enumerate(contexts)]
        waited = {one.episode: (one, 0) for one in new}
        while waited:
            ended = session.sample(new)
            new = []
            for episode, turn in ended.items():
                request, number = waited.pop(episode)
                found[episode, number] = turn
                if number + 1 < turns:
                    new.append(Request(episode, [*request.ids, *turn.ids, 7, 8], 2 + episode % 5))
                    waited[episode] = new[-1], number + 1
    return found


def assert_same(model: Any, prompts: dict[int, int]) -> None:
    for decoding in (Decoding(0.0), Decoding(1.0, 1.0)):
        plain, found = (play(model, decoding, one, prompts) for one in (False, True))
        assert {key: turn.ids for key, turn in found.items()} == {key: turn.ids for key, turn in plain.items()}
        for key, turn in plain.items():
            if turn.logprobs is not None:
                torch.testing.assert_close(found[key].logprobs, turn.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiled_layers_sample_what_uncompiled_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of one token and of many, shared or not; four layers are one graph; then other sizes need none."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    model = network(num_hidden_layers=4).eval()
    assert_same(model, {40: 4, 11: 3})
    first = graphs()
    assert 0 < first <= 4
    assert_same(model, {45: 3, 9: 5, 70: 4})
    assert graphs() <= first + 1
    assert_same(model, {1: 1, 30: 3})
    assert_same(model, {20: 1})
    assert graphs() <= 8, "torch's limit, after which layers run uncompiled"
    assert not any("forward" in vars(one) for one in model.model.modules())


@pytest.mark.slow
def test_with_adapters_other_families_and_code_of_inductor() -> None:
    adapted: Any = get_peft_model(network(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    for model in (adapted, network("qwen2")):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        assert_same(model.eval(), {40: 4, 11: 3})
        assert 0 < graphs() <= 8
