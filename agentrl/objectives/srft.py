"""SRFT (arXiv 2506.19767): SFT and RL on the expert trace, and RL on rollouts, in one loss with weights from entropy.

    L = L_SFT(h*) + L_RL(h*) + L_RL(rollouts)                            (eq. 13)

eq. 7      the trace is a member of the group: `luffy.mixed_advantages`, divided by the std
eq. 8      L_SFT: `demonstration_loss` with w_SFT = 0.5 exp(-H)
eq. 9-10   L_RL of the trace: `luffy.expert_loss` with the ratio p, since the policy that wrote the trace is taken as 1
eq. 11-12  L_RL of the rollouts: GRPO's loss; tokens with a positive advantage weigh w_RL = 0.1 exp(H) (`self_weights`)

H is the entropy of the policy at a token, and every weight is constant in the loss.
Shape suffixes: S expert traces, L tokens of a trace, B rollouts, C completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentrl.objectives.supervised import weighted_nll


def entropy_weights(entropies: Tensor, coef: float, slope: float) -> Tensor:
    """Return coef exp(slope H), without a gradient. A slope of 0 gives coef everywhere. entropies: any shape."""
    return coef * (slope * entropies.detach()).exp()


def demonstration_loss(
    logps: Tensor, entropies: Tensor, mask: Tensor, coef: float, slope: float
) -> tuple[Tensor, Tensor]:
    """Compute L_SFT of each trace: -(1/Z) sum_n m_n w_n log pi(h*_n | x, h*_<n) with Z = sum_n m_n.

    logps, entropies, mask: (S, L). Returns the loss (S,), and the weights w (S, L) of the targets, 0 elsewhere.
    """
    targets = mask > 0
    weights = entropy_weights(entropies, coef, slope).masked_fill(~targets, 0)
    return weighted_nll(logps, weights, targets.sum(1)), weights


def self_weights(advantages: Tensor, entropies: Tensor, coef: float, slope: float) -> Tensor:
    """Return the factor of each token's advantage (B, C): coef exp(slope H) if A > 0, else 1."""
    weights = entropy_weights(entropies, coef, slope)
    return torch.where(advantages > 0, weights, torch.ones_like(weights))
