"""Sampling on a GPU: greedy turns are those of transformers' `generate`, and log-probs those of an update."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentrl.models.loading import load_chat, load_model, needs_of
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
