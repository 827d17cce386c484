"""The scalarised Lagrangian: by hand, its reductions, missing rewards, and a trainer that uses it."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from agentrl.objectives.advantages import trajectory_advantage
from agentrl.objectives.hipo import lagrangian_advantage
from agentrl.objectives.scalarised import scalarised_advantage
from tests.support.helpers import composed, make_trainer, rolled_batch
from tests.trainers.test_hipo_trainer import SMALL, reply

EPS = 1e-6
USER = torch.tensor([[1.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
SYS = torch.tensor([[0.0, 0.1, 0.0, 0.1]], dtype=torch.float64)


def scalarised(user: torch.Tensor, system: torch.Tensor, multiplier: float, weight: float = 1.0) -> torch.Tensor:
    return scalarised_advantage(user, system[None], torch.tensor([multiplier]), weight, EPS)


def test_by_hand() -> None:
    # R = (1, .2, .5, .7): mean .6, deviations (.4, -.4, -.1, .1), unbiased std sqrt(.34 / 3) = .336650.
    expected = torch.tensor([[1.188177, -1.188177, -0.297044, 0.297044]], dtype=torch.float64)
    assert torch.allclose(scalarised(USER, SYS, 2.0), expected, atol=1e-5)


def test_a_reward_of_small_variance_is_drowned_which_hipo_prevents() -> None:
    hipo = lagrangian_advantage(USER, SYS[None], torch.tensor([2.0]), 1.0, EPS)
    assert hipo[0, 1] > 0 > scalarised(USER, SYS, 2.0)[0, 1]  # it keeps the rule and serves nobody


def test_a_weight_of_zero_leaves_the_other_reward_alone() -> None:
    assert torch.allclose(scalarised(USER, SYS, 0.0), trajectory_advantage(USER, EPS))
    assert torch.allclose(scalarised(USER, SYS, 1.0, weight=0.0), trajectory_advantage(SYS, EPS))


def test_missing_rewards() -> None:
    user = USER.clone()
    user[0, 0] = math.nan
    found = scalarised(user, SYS, 2.0)
    assert found[0, 0] == 0
    assert torch.allclose(found[:, 1:], scalarised(USER[:, 1:], SYS[:, 1:], 2.0))
    elsewhere = torch.full_like(SYS, math.nan)  # a constraint on another kind of prompt
    assert torch.allclose(scalarised(USER, elsewhere, 2.0), trajectory_advantage(USER, EPS))
    assert scalarised(elsewhere, elsewhere, 2.0).abs().max() == 0


def test_a_trainer_takes_it_and_moves_lambda(tmp_path: Path) -> None:
    trainer = make_trainer(composed("algo=scalarised", *SMALL, "dual.initial=2"), tmp_path, reply)
    batch = rolled_batch(trainer)
    user, system = (trainer._column(side, None).view(-1, 4) for side in ("user", "sys"))
    by_hand = trajectory_advantage(user + 2 * system, trainer.config.algo.advantage_eps)
    assert torch.allclose(batch["advantages"][:, 0], by_hand.flatten().float(), atol=1e-6)
    assert trainer.dual.values().item() != 2
