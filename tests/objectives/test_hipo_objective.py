"""HIPO's advantage and filter: by hand, missing rewards, reductions."""

from __future__ import annotations

import math

import pytest
import torch

from agentrl.objectives.advantages import trajectory_advantage
from agentrl.objectives.hipo import is_degenerate, lagrangian_advantage, repetition

EPS = 1e-6
USER = torch.tensor([[1.0, 0.0, 0.5, 0.5], [0.2, 0.8, 0.8, 0.2]], dtype=torch.float64)
SYS = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.4, 0.4, 0.4, 0.4]], dtype=torch.float64)


def lagrangian(user, system, multiplier, weight=1.0):
    return lagrangian_advantage(user, system[None], torch.tensor([multiplier], dtype=torch.float64), weight, EPS)


def test_by_hand():
    # First group: r_user has mean .5 and unbiased std sqrt(.5/3) = .40825, r_sys mean .5 and std sqrt(1/3) = .57735.
    # A = (.5, -.5, 0, 0) / .40825 + 2 (-.5, .5, -.5, .5) / .57735. Second group: r_sys is constant, so r_user alone.
    expected = [
        [1.22474 - 1.73205, -1.22474 + 1.73205, -1.73205, 1.73205],
        [-0.86603, 0.86603, 0.86603, -0.86603],
    ]
    assert torch.allclose(lagrangian(USER, SYS, 2.0), torch.tensor(expected, dtype=torch.float64), atol=1e-4)


def test_the_two_rewards_are_normalised_apart():
    assert torch.allclose(lagrangian(10 * USER, 0.1 * SYS, 2.0), lagrangian(USER, SYS, 2.0), atol=1e-4)


def test_a_multiplier_of_zero_leaves_the_user_alone_and_a_weight_of_zero_the_system():
    assert torch.equal(lagrangian(USER, SYS, 0.0), trajectory_advantage(USER, EPS))
    assert torch.equal(lagrangian(USER, SYS, 1.0, weight=0.0), trajectory_advantage(SYS, EPS))


def test_several_constraints_add_up():
    both = lagrangian_advantage(
        USER, torch.stack([SYS, 1 - USER]), torch.tensor([2.0, 0.5], dtype=torch.float64), 1.0, EPS
    )
    assert torch.allclose(both, lagrangian(USER, SYS, 2.0) - 0.5 * trajectory_advantage(USER, EPS))


def test_a_missing_reward_is_excluded_and_not_a_zero():
    user = USER.clone()
    user[0, 0] = math.nan
    out = lagrangian(user, SYS, 2.0)
    # r_user of the other three: 0, .5, .5 with mean 1/3 and std sqrt((1/9 + 2/36) / 2) = .288675.
    rest = torch.tensor([-1 / 3, 1 / 6, 1 / 6], dtype=torch.float64) / 0.288675
    system = 2 * trajectory_advantage(SYS, EPS)[0]
    assert torch.allclose(out[0, 1:], rest + system[1:], atol=1e-4)
    assert out[0, 0].item() == pytest.approx(system[0].item()), "its other reward still counts"
    lone = torch.full((1, 4), math.nan, dtype=torch.float64)
    lone[0, 2] = 0.7
    assert lagrangian(lone, lone, 2.0).abs().max() == 0, "nothing to compare one reply with"


def test_members_of_a_group_may_come_in_any_order():
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(lagrangian(USER[:, order], SYS[:, order], 2.0), lagrangian(USER, SYS, 2.0)[:, order])


def test_repetition_counts_runs_of_three_tokens():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2]) == 0
    # Runs 111, 111, 111, 112: two of the four occurred before.
    assert repetition([1, 1, 1, 1, 1, 2]) == pytest.approx(0.5)


def test_what_is_degenerate():
    assert is_degenerate([], 1, 0.5)
    assert not is_degenerate([7], 1, 0.5)
    assert is_degenerate([1] * 10, 1, 0.5)
    assert not is_degenerate([1] * 10, 1, 1.0)
    assert not is_degenerate([1, 2, 3, 1, 2, 4], 1, 0.5)
