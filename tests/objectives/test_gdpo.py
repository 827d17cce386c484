"""GDPO's advantage: by hand, its reductions, missing rewards, and a run that uses it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from agentrl.objectives.gdpo import batch_normalised_advantage
from agentrl.objectives.hipo import lagrangian_advantage
from tests.support.helpers import composed, make_trainer, rolled_batch
from tests.trainers.test_hipo_trainer import SMALL, reply

EPS = 1e-6
USER = torch.tensor([[1.0, 0.0], [0.2, 0.2]], dtype=torch.float64)
SYS = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)


def gdpo(user: torch.Tensor, system: torch.Tensor, multiplier: float, weight: float = 1.0) -> torch.Tensor:
    return batch_normalised_advantage(user, system[None], torch.tensor([multiplier]), weight, EPS)


def test_by_hand() -> None:
    # A_user = (.7071, -.7071), (0, 0); A_sys = (-.7071, .7071) twice. With lambda = 2 the sums are
    # (-.7071, .7071), (-1.4142, 1.4142): mean 0, std sqrt((.5 + .5 + 2 + 2) / 3) = 1.29099.
    expected = torch.tensor([[-0.547723, 0.547723], [-1.095445, 1.095445]], dtype=torch.float64)
    assert torch.allclose(gdpo(USER, SYS, 2.0), expected, atol=1e-5)


def test_the_size_does_not_grow_with_the_weights() -> None:
    assert torch.allclose(gdpo(USER, SYS, 2.0), gdpo(USER, SYS, 20.0, weight=10.0), atol=1e-5)
    assert lagrangian_advantage(USER, SYS[None], torch.tensor([20.0]), 10.0, EPS).abs().max() > 10


def test_it_is_hipo_s_advantage_but_for_one_factor() -> None:
    ours, hipo = gdpo(USER, SYS, 0.5), lagrangian_advantage(USER, SYS[None], torch.tensor([0.5]), 1.0, EPS)
    assert torch.allclose(ours, hipo / hipo.std(), atol=1e-5)  # the mean of both groups is 0


def test_a_rollout_without_a_reward_gets_nothing_and_moves_no_other() -> None:
    user, system = torch.cat([USER, USER]), torch.cat([SYS, SYS])
    user[3], system[3] = math.nan, math.nan
    found = gdpo(user, system, 2.0)
    assert found[3].tolist() == [0.0, 0.0]
    assert torch.allclose(found[:3], gdpo(user[:3], system[:3], 2.0))


def test_equal_rewards_teach_nothing() -> None:
    assert gdpo(torch.full((2, 4), 0.3), torch.ones(2, 4), 2.0).abs().max() == 0
    assert gdpo(torch.full((2, 4), math.nan), torch.full((2, 4), math.nan), 2.0).abs().max() == 0


def test_a_trainer_takes_it_and_keeps_lambda(tmp_path: Path) -> None:
    trainer = make_trainer(composed("algo=gdpo", *SMALL, "dual.initial=3"), tmp_path, reply)
    batch = rolled_batch(trainer)
    columns = [trainer._column(side, None).view(-1, 4) for side in ("user", "sys")]
    by_hand = batch_normalised_advantage(columns[0], columns[1][None], torch.tensor([3.0]), 1.0, EPS)
    assert torch.allclose(batch["advantages"][:, 0], by_hand.flatten().float(), atol=1e-6)
    assert batch["advantages"][:, 0].std().item() == pytest.approx(1, abs=1e-4)
    assert trainer.dual.values().tolist() == [3.0]
