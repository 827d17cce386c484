"""Sampling on a GPU: greedy turns are those of transformers' `generate`, and log-probs those of an update."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from agentrl.core.engine import Decoding
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed
from agentrl.rollout.replays import CudaRecorder, Replays
from agentrl.rollout.sampler import Request
from agentrl.scoring.packed import PackedEngine
from agentrl.scoring.sequence import Sequence
from tests.rollout.test_continuous import by_generate, engine, play
from tests.support.helpers import composed

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def parts() -> Any:
    from agentrl.benches import load_bench

    config = composed("algo=grpo", "bench.train_tasks=12", "rollout.max_turns=5", "rollout.max_completion_tokens=300")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")
    return config, bench, tasks, load_chat(config.model, needs_of(tasks)), load_model(config.model).to("cuda")


def test_greedy_turns_are_those_of_generate_item_by_item(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.rollout.test_continuous import GREEDY

    tasks = [task for task in parts[2][:8] for _ in range(2)]
    wanted = by_generate(parts, tasks, monkeypatch)
    assert play(parts, engine(parts), tasks, GREEDY) == wanted
    assert any(one.calls for one in wanted)


def test_the_same_seed_gives_the_same_rollouts(parts: Any) -> None:
    tasks = [task for task in parts[2][:4] for _ in range(4)]
    once, again = (play(parts, engine(parts), tasks, None) for _ in range(2))
    assert [one.completion_ids for one in once] == [one.completion_ids for one in again]


@pytest.mark.parametrize("bf16", [False, True])
def test_replayed_steps_sample_what_plain_ones_do(parts: Any, bf16: bool) -> None:
    """Sixteen rows whose turns end one after the other, recorded as CUDA graphs, in a cache that is resized once."""
    model, ids = parts[4].eval(), [list(range(40, 40 + size)) for size in (70, 200)]
    replayed, recorder = [], CudaRecorder()

    def record(function: Any) -> Any:
        again, result = recorder(function)
        return lambda: replayed.append(again()), result

    def turns(replays: Replays | None) -> dict[int, Any]:
        torch.manual_seed(1)
        session = Continuous(model, Draw(Decoding(1.0, 1.0)), [10**6], 2048, 400, 65536, replays)
        found = session.sample([Request(row, ids[row % 2], 20 + 24 * row) for row in range(16)])
        while len(found) < 16:
            found |= session.sample([])
        return found

    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        packed(model),
        torch.autocast("cuda", torch.bfloat16, enabled=bf16),
    ):
        warnings.simplefilter("error")
        plain, found = turns(None), turns(Replays(model, record))
    assert len(replayed) > 150
    for row, turn in plain.items():
        if not bf16:
            assert found[row].ids == turn.ids
            torch.testing.assert_close(found[row].logprobs, turn.logprobs, atol=1e-4, rtol=1e-4)
        assert len(found[row].ids) == len(turn.ids) and all(map(math.isfinite, found[row].logprobs or []))
        assert found[row].ids[0] == turn.ids[0] and abs(found[row].logprobs[0] - turn.logprobs[0]) < 0.1


def test_log_probs_are_those_of_the_packed_forward_pass(parts: Any) -> None:
    from trl.trainer.utils import add_fused_lm_head

    played = play(parts, engine(parts), parts[2][:6], None)
    model = load_model(parts[0].model).to("cuda")
    add_fused_lm_head(model, temperature=1.3, outputs=("log_probs", "entropy"))
    scorer = PackedEngine()
    scorer.prepare(model)
    sampled = [[place for place, own in enumerate(one.policy_mask) if own] for one in played]
    sequences = [
        Sequence(one.prompt_ids + one.completion_ids, [len(one.prompt_ids) + place for place in places])
        for one, places in zip(played, sampled, strict=True)
    ]
    for one, places, logps in zip(played, sampled, scorer.score(model, sequences).logps, strict=True):
        said = torch.tensor(one.logprobs)[places]
        torch.testing.assert_close(logps.detach().cpu(), said, rtol=1e-4, atol=1e-4)
