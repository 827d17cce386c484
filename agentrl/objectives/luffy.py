"""LUFFY (Learning to Reason under Off-Policy Guidance, arXiv 2504.14945): an expert's trace as a member of the group.

The policy that wrote the trace is unknown. Its probabilities are taken as 1, so the importance ratio of a token is p,
the trained policy's probability. LUFFY replaces p by p / (p + gamma). The gradient of a token is then
A gamma p / (p + gamma)^2 times the gradient of log p, in place of A p times it: unlikely tokens get a larger share.
Shape suffixes: N prompts, K rollouts of each, S expert traces, L tokens of a trace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agentrl.objectives.advantages import trajectory_advantage
from agentrl.objectives.policy import row_means


def shaped_ratio(logps: Tensor, gamma: float | None) -> Tensor:
    """Return f(p) = p / (p + gamma), in (0, 1 / (1 + gamma)], for log-probs of any shape. Without gamma, f(p) = p.

    Raises ValueError if gamma <= 0.
    """
    if gamma is None:
        return logps.exp()
    if gamma <= 0:
        raise ValueError(f"gamma {gamma} must be above 0")
    return torch.sigmoid(logps - math.log(gamma))


def expert_loss(logps: Tensor, mask: Tensor, advantages: Tensor, gamma: float | None) -> tuple[Tensor, Tensor]:
    """Compute the loss of each trace, -(A / Z) sum_n m_n f(p_n) with Z = sum_n m_n. It is 0 if Z = 0.

    logps, mask: (S, L), advantages: (S,). Returns the loss (S,), and f of the targets (S, L) without a gradient, 0
    elsewhere. Log-probs outside the mask are never read.
    Raises ValueError on differing shapes.
    """
    if logps.dim() != 2 or logps.shape != mask.shape or advantages.shape != logps.shape[:1]:
        raise ValueError(
            f"logps {tuple(logps.shape)} and mask {tuple(mask.shape)} must both be (S, L), "
            f"advantages {tuple(advantages.shape)} (S,)"
        )
    targets = mask > 0
    ratio = shaped_ratio(logps.masked_fill(~targets, 0), gamma).masked_fill(~targets, 0)
    return -advantages.to(ratio.dtype) * row_means(ratio, targets), ratio.detach()


def mixed_advantages(returns: Tensor, expert: Tensor, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """Compute A = R - mean, with the mean over the K rollouts and the expert. With eps, divide by their std + eps.

    returns: (N, K); expert: (N,), NaN for a prompt without a trace. Such a prompt is compared over its rollouts alone.
    Returns the advantages of the rollouts (N, K) and of the expert (N,), NaN where `expert` is NaN.
    """
    members = torch.cat([returns, expert[:, None]], dim=1)
    together = trajectory_advantage(members, eps or 0.0, divide_by_std=eps is not None)
    return together[:, :-1], together[:, -1].masked_fill(torch.isnan(expert), torch.nan)


def member_shares(expert_advantages: Tensor, group: int) -> Tensor:
    """Return the factor (B,) that turns a mean over K rollouts into a mean over K + 1 members.

    It is K / (K + 1), or 1 without an expert. expert_advantages: (B,), the expert's advantage in the group of each
    rollout, NaN if the group has no expert; `group` is K.
    """
    alone = torch.isnan(expert_advantages)
    return torch.where(alone, 1.0, group / (group + 1)).to(expert_advantages.dtype)
