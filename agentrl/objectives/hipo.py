"""HIPO (arXiv 2603.16152): the advantage of its Lagrangian, and a test for replies too degenerate to train on.

steps 2, 3 of the algorithm    `lagrangian_advantage`
step 4                         `policy.policy_loss`, with the ratio of a whole reply (level 'sequence'; the default is
                               its geometric mean over the tokens, 'sequence_mean') and `policy.k3` for log(pi/pi_ref)
step 5                         `dual.py`

Shapes: P prompts, G rollouts of each, K constraints. NaN marks a missing reward, which never counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from agentrl.objectives.advantages import trajectory_advantage

REPEATED = 3  # number of tokens in a row that count as a repetition when they occur again


def lagrangian_advantage(
    user: Tensor, constraints: Tensor, multipliers: Tensor, user_weight: float, eps: float
) -> Tensor:
    """Compute A = w A_user + sum_k lambda_k A_k. Each reward is normalised separately (algorithm steps 2 and 3).

    user (P, G), constraints (K, P, G), multipliers (K,) -> (P, G). The sum is not divided by 1 + lambda, so a large
    multiplier makes large steps. A missing reward adds 0 to its rollout; the other rewards of the rollout still count.
    A reward that is constant in a group adds 0 to the group.
    """
    total = user_weight * trajectory_advantage(user, eps)
    for rewards, multiplier in zip(constraints, multipliers.to(total), strict=True):
        total = total + multiplier * trajectory_advantage(rewards, eps)
    return total


def repetition(ids: Sequence[int]) -> float:
    """Return the share, in [0, 1), of the runs of REPEATED tokens that already occurred earlier in the reply."""
    runs = [tuple(ids[start : start + REPEATED]) for start in range(len(ids) - REPEATED + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_degenerate(ids: Sequence[int], min_tokens: int, max_repetition: float) -> bool:
    """Return whether a reply is shorter than `min_tokens` or its `repetition` exceeds `max_repetition`.

    ids: the tokens of the reply without its end token.
    """
    return len(ids) < min_tokens or repetition(ids) > max_repetition
