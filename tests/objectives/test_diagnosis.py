"""What the terms pull at: worked by hand, and the pull against the gradient of the loss."""

from __future__ import annotations

import math

import pytest
import torch

from agentrl.objectives.diagnosis import compare_gradients, describe_context, describe_shift, pull
from agentrl.objectives.policy import PolicyBatch, PolicySettings, policy_loss


def test_norms_and_cosines_by_hand() -> None:
    one = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]), None]
    other = [torch.tensor([0.0, 2.0]), torch.tensor([[2.0]]), torch.tensor([1.0])]
    found = compare_gradients({"x": one, "h": other, "sft": [torch.zeros(2), None, None]})
    assert found["norm_x"] == 5
    assert found["norm_h"] == 3
    assert found["norm_sft"] == 0
    assert found["cos_x_h"] == pytest.approx(8 / 15)
    assert math.isnan(found["cos_x_sft"]) and math.isnan(found["cos_h_sft"])


def test_the_pull_is_the_gradient_in_the_logit_of_the_sampled_token() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    tokens = torch.randint(5, (2, 3))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantages = torch.tensor([[1.5, -0.5, 9.0], [-2.0, 0.0, 1.0]])
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    batch = PolicyBatch(logps, advantages, mask, torch.zeros_like(logps))
    policy_loss(batch, PolicySettings(aggregation="token"), tokens=1.0)[0].backward()
    expected = logits.grad.gather(-1, tokens[..., None]).squeeze(-1).abs()  # type: ignore[union-attr]
    assert torch.allclose(pull(logps, advantages, mask), expected, atol=1e-6)


def test_what_a_context_pulls_at_by_hand() -> None:
    logps = torch.tensor([[0.5, 0.001, 0.9, 0.25]]).log()
    advantages = torch.tensor([[1.0, -2.0, -1.0, 3.0]])
    found = describe_context(logps, advantages, torch.tensor([[1, 1, 1, 0]]))
    assert found["pull_good"] == pytest.approx(0.5)
    assert found["pull_bad"] == pytest.approx((2 * 0.999 + 0.1) / 2)
    assert found["improbable"] == pytest.approx(1.998 / 2.098)
    silent = describe_context(logps, advantages * 0, torch.ones(1, 4))
    assert all(math.isnan(value) for value in silent.values())


def test_the_shift_of_good_and_bad_tokens_by_hand() -> None:
    under_x = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    under_h = torch.tensor([[-0.5, -2.5], [-6.0, -9.0]])
    found = describe_shift(under_h, under_x, torch.tensor([[1.0], [-1.0]]).expand(2, 2), torch.tensor([[1, 1], [1, 0]]))
    assert found == {"shift_good": 0.0, "shift_bad": -3.0}
