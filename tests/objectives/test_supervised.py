"""The loss on expert tokens: by hand, by finite differences, by invariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agentrl.objectives.supervised import prompt_mean, token_nll, weighted_nll


def random_traces(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and weights (4, 7) and Z (4,) of traces of which the last has no target."""
    rng = torch.Generator().manual_seed(seed)
    logps = -torch.rand(4, 7, generator=rng, dtype=torch.float64) * 3
    weights = torch.rand(4, 7, generator=rng, dtype=torch.float64) * (torch.arange(7) < 5)
    weights[3] = 0
    return logps, weights, weights.sum(1)


def test_weighted_nll_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -1.0, -5.0]])
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.0, 0.0]])
    # (1 + 1) / 1.5 and .6 / .2; over the number of targets (1 + 1) / 2 and .6 / 1
    assert weighted_nll(logps, weights, weights.sum(1)).tolist() == pytest.approx([2 / 1.5, 3.0])
    assert weighted_nll(logps, weights, (weights > 0).sum(1)).tolist() == pytest.approx([1.0, 0.6])


def test_gradients_agree_with_finite_differences_and_weights_have_none() -> None:
    logps, weights, z = random_traces()
    assert torch.autograd.gradcheck(lambda x: weighted_nll(x, weights, z), (logps.requires_grad_(),))
    weights.requires_grad_()
    weighted_nll(logps, weights, z.detach()).sum().backward()
    assert weights.grad is None and logps.grad is not None
    torch.testing.assert_close(logps.grad, -(weights / z[:, None]).nan_to_num().detach())


def test_a_trace_without_targets_is_0_and_what_has_no_weight_is_never_read() -> None:
    logps, weights, z = random_traces(1)
    expected = weighted_nll(logps, weights, z)
    assert expected[3] == 0 and expected[:3].min() > 0
    spoilt = torch.where(weights == 0, math.nan, logps).requires_grad_()
    found = weighted_nll(spoilt, weights, z)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert spoilt.grad is not None and torch.isfinite(spoilt.grad).all() and spoilt.grad[3].abs().max() == 0


def test_padding_and_the_order_of_traces_change_nothing() -> None:
    logps, weights, z = random_traces(2)
    expected, order = weighted_nll(logps, weights, z), torch.tensor([2, 0, 3, 1])
    padded = [torch.cat([value, torch.full((4, 2), fill).double()], 1) for value, fill in ((logps, -9), (weights, 0))]
    torch.testing.assert_close(weighted_nll(*padded, z), expected)
    torch.testing.assert_close(weighted_nll(logps[order], weights[order], z[order]), expected[order])


def test_each_target_counts_alike_in_sft() -> None:
    logps, weights, _ = random_traces(3)
    targets = logps[weights > 0]
    whole = token_nll(targets, len(targets))
    assert whole.item() == pytest.approx(-float(targets.sum()) / len(targets))
    torch.testing.assert_close(token_nll(targets[:3], len(targets)) + token_nll(targets[3:], len(targets)), whole)
    assert torch.autograd.gradcheck(lambda x: token_nll(x, 5), (targets.clone().requires_grad_(),))
    assert token_nll(targets[:0], 0) == 0


def test_shapes_are_checked() -> None:
    logps, weights, z = random_traces()
    for bad in ((logps, weights[:, 1:], z), (logps[0], weights[0], z), (logps, weights, z[:2])):
        with pytest.raises(ValueError, match="must both be"):
            weighted_nll(*bad)


def test_prompt_mean_by_hand_and_micro_batch_split() -> None:
    # 4 prompts, K = 2, traces of prompts 0, 1 and 3 (prompt 2 is anchored): (1 + 2 + 6) / 4
    losses = {0: 1.0, 2: 2.0, 6: 6.0}  # by the row that carries the trace
    whole = prompt_mean(torch.tensor(list(losses.values())), group_size=2, rows=8)
    assert whole.item() == pytest.approx(2.25)
    for size in (1, 2, 4):  # even micro-batches of half a group
        parts: list[Tensor] = []
        for start in range(0, 8, size):
            present = [value for row, value in losses.items() if start <= row < start + size]
            parts.append(prompt_mean(torch.tensor(present), group_size=2, rows=size))
        torch.testing.assert_close(torch.stack(parts).mean(), whole)
    with pytest.raises(ValueError, match="above 0"):
        prompt_mean(torch.zeros(1), group_size=0, rows=8)
