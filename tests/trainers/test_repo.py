"""RePO: only what a reply lacks counts, for the advantages and for the multiplier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentrl.objectives.hipo import lagrangian_advantage
from agentrl.trainers.repo import RepoTrainer
from tests.support.helpers import composed, make_trainer, rolled_batch
from tests.trainers.test_hipo_trainer import SMALL, reply, rewards_of

KEYS = (*SMALL, "dual.kind=sgd", "dual.initial=2", "dual.learning_rate=0.07")


def test_one_step_by_hand(tmp_path: Path) -> None:
    trainer = make_trainer(composed("algo=repo", *KEYS, "algo.tau=0.4"), tmp_path, reply)
    assert type(trainer) is RepoTrainer
    batch = rolled_batch(trainer)
    user, system = rewards_of(trainer, "user"), rewards_of(trainer, "sys")
    assert (system > 0.4).any() and (system < 0.4).any()
    rectified = -(0.4 - system).clamp(min=0)  # -max(C, 0)
    by_hand = lagrangian_advantage(user, rectified[None], torch.tensor([2.0]), 1.0, 1e-6)
    assert torch.allclose(batch["advantages"][:, 0], by_hand.flatten().float(), atol=1e-5)
    assert trainer.dual.values().item() == pytest.approx(2 - 0.07 * rectified.mean().item())


def test_the_mean_may_meet_the_threshold_while_lambda_rises(tmp_path: Path) -> None:
    found = {}
    for algo in ("hipo", "repo"):
        trainer = make_trainer(composed(f"algo={algo}", *KEYS, "algo.tau=0.4"), tmp_path / algo, reply)
        rolled_batch(trainer)
        assert rewards_of(trainer, "sys").mean() > 0.4
        found[algo] = trainer.dual.values().item()
    assert found["hipo"] < 2 < found["repo"]


def test_a_threshold_of_one_is_hipo(tmp_path: Path) -> None:
    batches = []
    for algo in ("hipo", "repo"):
        trainer = make_trainer(composed(f"algo={algo}", *KEYS, "algo.tau=1"), tmp_path / algo, reply)
        batches.append(rolled_batch(trainer)["advantages"])
    assert torch.equal(*batches) and batches[0].abs().max() > 0
