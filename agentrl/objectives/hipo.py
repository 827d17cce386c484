"""HIPO (arXiv 2603.16152): the advantage of a Lagrangian, and which rollouts are too degenerate to learn from.

steps 2, 3 of the algorithm    `lagrangian_advantage`
step 4                         `policy.policy_loss`, the ratio at level 'sequence'
step 5                         `dual.py`

Shapes: P prompts, G rollouts of each, K constraints. NaN marks a reward that is missing; it never counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from agentrl.objectives.advantages import trajectory_advantage

REPEATED = 3  # tokens in a row whose recurrence counts as repetition


def lagrangian_advantage(
    user: Tensor, constraints: Tensor, multipliers: Tensor, user_weight: float, eps: float
) -> Tensor:
    """A = w A_user + sum_k lambda_k A_k, each reward normalised by itself (algorithm steps 2 and 3).

    user (P, G), constraints (K, P, G), multipliers (K,) -> (P, G). Not divided by 1 + lambda: a large multiplier makes
    large steps. A missing reward adds nothing to its rollout, whose others still count; a group in which a reward is
    constant gets nothing from it.
    """
    total = user_weight * trajectory_advantage(user, eps)
    for rewards, multiplier in zip(constraints, multipliers.to(total), strict=True):
        total = total + multiplier * trajectory_advantage(rewards, eps)
    return total


def repetition(ids: Sequence[int]) -> float:
    """Share of the runs of REPEATED tokens that occurred before in the same reply, in [0, 1)."""
    runs = [tuple(ids[start : start + REPEATED]) for start in range(len(ids) - REPEATED + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def degenerate(ids: Sequence[int], min_tokens: int, max_repetition: float) -> bool:
    """Whether a reply (its end token left out) is shorter than `min_tokens` or repeats more than `max_repetition`."""
    return len(ids) < min_tokens or repetition(ids) > max_repetition
