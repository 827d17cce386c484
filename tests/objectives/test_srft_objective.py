"""SRFT's terms by hand and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from agentrl.objectives.luffy import mixed_advantages, shaped_ratio
from agentrl.objectives.srft import demonstration_loss, entropy_weights, self_weights

HALF, FIFTH = math.log(0.5), math.log(0.2)
LOGPS = torch.tensor([[HALF, FIFTH, math.nan], [FIFTH, HALF, HALF]], dtype=torch.float64)
ENTROPIES = torch.tensor([[0.0, math.log(2), 5.0], [math.log(4), 0.0, math.log(2)]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


def test_weights_fall_or_rise_with_the_entropy() -> None:
    entropies = torch.tensor([0.0, math.log(2), math.log(4)], requires_grad=True)
    assert entropy_weights(entropies, 0.5, -1.0).tolist() == pytest.approx([0.5, 0.25, 0.125])  # eq. 8
    assert entropy_weights(entropies, 0.1, 1.0).tolist() == pytest.approx([0.1, 0.2, 0.4])  # eq. 12
    assert entropy_weights(entropies, 0.7, 0.0).tolist() == pytest.approx([0.7] * 3)
    assert not entropy_weights(entropies, 0.5, -1.0).requires_grad


def test_the_sft_term_by_hand_and_by_finite_differences() -> None:
    logps = LOGPS.clone().requires_grad_()
    losses, weights = demonstration_loss(logps, ENTROPIES, MASK, 0.5, -1.0)
    assert weights.tolist() == [pytest.approx([0.5, 0.25, 0.0]), pytest.approx([0.125, 0.5, 0.25])]
    # Z counts tokens, so a small weight makes the term smaller
    expected = [-(0.5 * HALF + 0.25 * FIFTH) / 2, -(0.125 * FIFTH + 0.75 * HALF) / 3]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert logps.grad is not None
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 2)):
        ends = []
        for step in (-1e-6, 1e-6):
            moved = LOGPS.clone()
            moved[row, column] += step
            ends.append(demonstration_loss(moved, ENTROPIES, MASK, 0.5, -1.0)[0].sum().item())
        assert logps.grad[row, column].item() == pytest.approx((ends[1] - ends[0]) / 2e-6, abs=1e-8)
    assert demonstration_loss(LOGPS, ENTROPIES, torch.zeros_like(MASK), 0.5, -1.0)[0].tolist() == [0, 0]


def test_good_tokens_alone_are_weighed() -> None:
    advantages = torch.tensor([[2.0, -1.0, 0.0]])
    entropies = torch.full((1, 3), math.log(3))
    assert self_weights(advantages, entropies, 0.1, 1.0)[0].tolist() == pytest.approx([0.3, 1.0, 1.0])


def test_the_ratio_of_the_trace_is_its_probability() -> None:
    """The policy that wrote the trace has the probability 1 (eq. 10)."""
    assert shaped_ratio(torch.tensor([1.0, 0.2]).log(), None).tolist() == pytest.approx([1.0, 0.2])


def test_advantages_are_normalised_over_rollouts_and_trace() -> None:
    returns, expert = torch.tensor([[0.0, 0.0, 3.0]]).double(), torch.tensor([3.0]).double()
    rollouts, experts = mixed_advantages(returns, expert, eps=0.0)
    std = math.sqrt(4 * 1.5**2 / 3)  # mean 1.5; the unbiased std of 0, 0, 3, 3
    assert rollouts[0].tolist() == pytest.approx([-1.5 / std, -1.5 / std, 1.5 / std])
    assert experts.tolist() == pytest.approx([1.5 / std])
