"""The scalarised Lagrangian: the rewards of both sides are added up first, and the sum is normalised in the group.

This is GRPO on the reward w r_user + sum_k lambda_k r_k. A reward that varies little in a group is drowned by one that
varies much; HIPO normalises each reward by itself to avoid this.

Shapes: P prompts, G rollouts of each, K constraints. NaN marks a missing reward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentrl.objectives.advantages import trajectory_advantage


def scalarised_advantage(
    user: Tensor, constraints: Tensor, multipliers: Tensor, user_weight: float, eps: float
) -> Tensor:
    """Compute A = (R - mean) / (std + eps) over a group, of the sum R = w r_user + sum_k lambda_k r_k.

    user (P, G), constraints (K, P, G), multipliers (K,) -> (P, G). A reward that a whole group lacks, such as that of a
    constraint on other prompts, is left out of the sum. A rollout that lacks a reward which others of its group have
    gets 0: its sum cannot be compared with theirs.
    """
    rewards = torch.cat([user[None], constraints])
    weights = torch.cat([multipliers.new_tensor([user_weight]), multipliers]).to(user)
    unknown = torch.isnan(rewards).all(2, keepdim=True)  # (1 + K, P, 1)
    returns = (weights[:, None, None] * rewards.masked_fill(unknown, 0)).sum(0)
    return trajectory_advantage(returns, eps)
