"""CHORD (On-Policy RL Meets Off-Policy Experts, arXiv 2508.11408): SFT as a weighted term beside GRPO.

L = (1 - mu) L_GRPO + mu L_SFT. CHORD-mu changes mu during training (`schedules.warmup_cosine`). CHORD-phi keeps mu
constant and weights every expert token by phi = p (1 - p), where p is the policy's probability of the token. So tokens
that the policy finds certain or very unlikely count little.
Shape suffixes: S expert traces, L tokens of a trace.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from agentrl.objectives.choices import TokenWeight
from agentrl.objectives.supervised import weighted_nll


def phi(logps: Tensor) -> Tensor:
    """Return p (1 - p), in [0, 1/4], of tokens with log-probs `logps` of any shape. `weighted_nll` detaches it."""
    p = logps.exp()
    return p * (1 - p)


def chord_sft_loss(logps: Tensor, mask: Tensor, token_weight: TokenWeight) -> tuple[Tensor, Tensor]:
    """Compute L_SFT per trace: -(1/Z) sum_n m_n w_n log pi(h*_n | x, h*_<n) with Z = sum_n m_n.

    w is phi, or 1 for 'uniform'. Z counts every target once, so phi also makes the term smaller. logps, mask: (S, L).
    Returns the loss (S,), and the weights (S, L) of the targets without a gradient, 0 elsewhere.
    Raises ValueError on an unknown weight and on differing shapes.
    """
    if token_weight not in get_args(TokenWeight):
        raise ValueError(f"unknown token weight {token_weight!r}")
    targets = mask > 0
    weight = (phi(logps) if token_weight == "phi" else torch.ones_like(logps)).masked_fill(~targets, 0)
    count = targets.sum(1)
    return weighted_nll(logps, weight, count), weight.detach()


def mixed_loss(grpo: Tensor, sft: Tensor, mu: float) -> Tensor:
    """Return (1 - mu) L_GRPO + mu L_SFT, a scalar. Raises ValueError unless 0 <= mu <= 1."""
    if not 0 <= mu <= 1:
        raise ValueError(f"mu {mu} is not in [0, 1]")
    return (1 - mu) * grpo + mu * sft
