"""Sampler and trainer are compared in every run, also where nothing but the loss scores the rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.rollout.drawing import Draw
from agentrl.trainers.faults import STRAY_KL
from agentrl.trainers.loss import LossTrainer
from tests.support.helpers import make_trainer, small

ROLLOUTS = ("rollout.max_turns=2", "rollout.max_completion_tokens=64", "rollout.max_turn_tokens=16")
KEYS = ("trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.learning_rate=1e-3", *ROLLOUTS)


def logged(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: entry[name] for name in entry if name.startswith("sampler/")} for entry in entries]


@pytest.mark.parametrize("algo", ["grpo", "pact", "luffy", "hint_grpo", "srft", "chord", "rlsd"])
def test_the_sampler_draws_from_the_policy_that_is_trained(algo: str, tmp_path: Path) -> None:
    for entry in logged(make_trainer(small(f"algo={algo}", *KEYS), tmp_path)):
        assert abs(entry["sampler/kl"]) < 1e-9
        assert entry["sampler/ratio_mean"] == pytest.approx(1, abs=1e-4)
        assert 1 - 1e-6 < entry["sampler/ratio_max"] < 1 + 1e-3


@pytest.fixture
def flatter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that draws from flatter logits than the trainer's."""
    tokens = Draw.tokens
    monkeypatch.setattr(Draw, "tokens", lambda self, logits, streams: tokens(self, logits * 0.2, streams))


def test_the_mean_is_over_all_pieces_of_an_update(
    tmp_path: Path, flatter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    usual = LossTrainer.piece_loss
    monkeypatch.setattr(LossTrainer, "piece_loss", lambda *given: pieces.append(1) or usual(*given))
    found = []
    for size, cut in ((100_000, 1), (200, 2)):
        pieces.clear()
        found.append(logged(make_trainer(small("algo=grpo", f"trainer.tokens_per_batch={size}", *KEYS), tmp_path))[0])
        assert len(pieces) == 2 * cut  # of two updates
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[0]["sampler/kl"] > STRAY_KL


def test_rollouts_under_another_context_than_the_loss_are_left_out(tmp_path: Path) -> None:
    mixed = logged(make_trainer(small("algo=pact", "algo.q=0.5", "trainer.prompts_per_batch=4", *KEYS), tmp_path))
    assert any(entry for entry in mixed)
    assert all(entry["sampler/ratio_max"] < 1 + 1e-3 for entry in mixed if entry)
    assert logged(make_trainer(small("algo=pact", "algo.q=0", *KEYS), tmp_path)) == [{}, {}]


def test_top_p_leaves_out_the_comparison(tmp_path: Path) -> None:
    assert logged(make_trainer(small("algo=grpo", "rollout.top_p=0.9", *KEYS), tmp_path)) == [{}, {}]


def test_a_sampler_that_draws_from_another_distribution_is_seen(tmp_path: Path, flatter: None) -> None:
    first = logged(make_trainer(small("algo=grpo", *KEYS), tmp_path))[0]
    assert first["sampler/kl"] > STRAY_KL
