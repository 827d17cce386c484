"""GDPO (arXiv 2601.05242): rewards are normalised apart, their weighted sum once more over the whole batch.

Like HIPO's Lagrangian it keeps a reward of large variance from drowning another. Unlike there, the size of an advantage
does not grow with the multipliers: a large multiplier makes no large steps.

Shapes: P prompts, G rollouts of each, K constraints. NaN marks a missing reward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentrl.objectives.hipo import lagrangian_advantage


def batch_normalised_advantage(
    user: Tensor, constraints: Tensor, multipliers: Tensor, user_weight: float, eps: float
) -> Tensor:
    """Compute (S - mean) / (std + eps) of the sum S = w A_user + sum_k lambda_k A_k over all rollouts of the batch.

    user (P, G), constraints (K, P, G), multipliers (K,) -> (P, G). The std is unbiased. A rollout without any reward
    gets 0, and neither mean nor std includes it. If all sums are equal, all get exactly 0.
    """
    total = lagrangian_advantage(user, constraints, multipliers, user_weight, eps)
    known = ~torch.isnan(torch.cat([user[None], constraints])).all(0)
    sums = total[known]
    if len(sums) < 2 or bool((sums == sums[0]).all()):
        return torch.zeros_like(total)
    return ((total - sums.mean()) / (sums.std() + eps)).masked_fill(~known, 0)
