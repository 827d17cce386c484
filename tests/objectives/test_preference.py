"""DPO's loss: by hand, by finite differences, cut into pieces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agentrl.objectives.preference import dpo_loss, implicit_rewards, reply_log_prob


def drawn() -> tuple[Tensor, Tensor]:
    """Log-probs (4, 2) under the policy and the reference."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-9 * torch.rand(4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy, reference


def test_the_loss_by_hand() -> None:
    policy = torch.tensor([[-1.0, -3.0], [-2.0, -2.0]])
    reference = torch.tensor([[-2.0, -2.5], [-2.0, -2.0]])
    # log-ratios 1 and -0.5: a margin of 1.5; the second pair is where it started
    assert implicit_rewards(policy, reference, 0.4).tolist() == [pytest.approx([0.4, -0.2]), [0.0, 0.0]]
    expected = (math.log(1 + math.exp(-0.4 * 1.5)) + math.log(2)) / 2
    assert dpo_loss(policy, reference, 0.4).item() == pytest.approx(expected)
    assert reply_log_prob(torch.tensor([-1.5, -0.5])).item() == -2


def test_gradients_agree_with_finite_differences_and_the_reference_has_none() -> None:
    policy, reference = drawn()
    assert torch.autograd.gradcheck(lambda x: dpo_loss(x, reference, 0.3), (policy.requires_grad_(),))
    reference.requires_grad_()
    dpo_loss(policy, reference, 0.3).backward()
    assert reference.grad is None and policy.grad is not None
    assert (policy.grad[:, 0] < 0).all() and torch.equal(policy.grad[:, 0], -policy.grad[:, 1])


def test_pieces_sum_to_the_mini_batch_and_order_changes_nothing() -> None:
    policy, reference = drawn()
    whole = dpo_loss(policy, reference, 0.3)
    pieces = [dpo_loss(policy[rows], reference[rows], 0.3, 4) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(pieces), whole)
    torch.testing.assert_close(dpo_loss(policy.flip(0), reference.flip(0), 0.3), whole)


def test_shapes_are_checked() -> None:
    policy, reference = drawn()
    for bad in ((policy[:, 0], reference[:, 0]), (policy, reference[:2])):
        with pytest.raises(ValueError, match="must both be"):
            dpo_loss(*bad, 0.3)
