"""Measures where attention goes as the response begins (HIPO, Table 3), and reweights it (Split-Softmax).

Shapes: L layers, H heads, T prompt tokens, B rows, Q queries, K keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAR, NEAR = 0.8, 0.2  # relative distances that bound the farthest and the closest fifth of the prompt
BINS = 20  # number of bins of relative distance in a profile
MEASURES = ("centroid", "far_mass", "near_mass", "far_near", "system_mass", "user_mass", "system_user")


def relative_distance(length: int, device: torch.device | None = None) -> Tensor:
    """Return d(k) = (q - k) / q, shape (T,): the distance from the last prompt token q = T - 1.

    It is 1 at the first token and 0 at q.
    """
    last = length - 1
    return (last - torch.arange(length, dtype=torch.float64, device=device)) / max(last, 1)


def far_heads(attention: Tensor, alpha: float) -> Tensor:
    """Return the mask (L, H) of the ceil(H * alpha) heads of each layer with the largest expected distance.

    attention: (L, H, T), the attention of the prompt's last token.
    """
    expected = attention.double() @ relative_distance(attention.shape[-1], attention.device)
    heads = attention.shape[1]
    chosen = expected.topk(math.ceil(heads * alpha), dim=1).indices
    return torch.zeros(attention.shape[:2], dtype=torch.bool, device=attention.device).scatter(1, chosen, True)


def onset_measures(attention: Tensor, system: Tensor, user: Tensor, alpha: float) -> dict[str, float]:
    """Compute the measures of HIPO's Table 3 for one prompt. Return them by name.

    attention: (L, H, T), the attention of the prompt's last token; system, user: masks (T,) of the two messages'
    tokens; alpha in (0, 1]. Averages over the heads of `far_heads`: `centroid` (expected distance), `far_mass` and
    `near_mass` (mass on the farthest and the closest fifth of the prompt), `system_mass` and `user_mass` (mass on the
    two messages). `far_near` and `system_user` are ratios of these; a ratio is NaN if its denominator is 0.
    """
    weights = attention.double()[far_heads(attention, alpha)].mean(0)
    distance = relative_distance(len(weights), weights.device)
    near, far = float(weights[distance <= NEAR].sum()), float(weights[distance >= FAR].sum())
    on_system, on_user = float(weights[system].sum()), float(weights[user].sum())
    return {
        "centroid": float(weights @ distance),
        "far_mass": far,
        "near_mass": near,
        "far_near": far / near if near > 0 else math.nan,
        "system_mass": on_system,
        "user_mass": on_user,
        "system_user": on_system / on_user if on_user > 0 else math.nan,
    }


def distance_profile(attention: Tensor, alpha: float) -> Tensor:
    """Return the attention mass by relative distance, shape (BINS,), closest first, averaged over `far_heads`."""
    weights = attention.double()[far_heads(attention, alpha)].mean(0)
    bins = (relative_distance(len(weights), weights.device) * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(BINS, dtype=torch.float64, device=weights.device).index_add(0, bins, weights)


def split_softmax(weights: Tensor, system: Tensor, k: float) -> Tensor:
    """Raise the attention mass p on the system prompt to p^k, k in (0, 1]; rows still sum to 1.

    weights: (B, H, Q, K); system: mask (B, K) of the system prompt's keys. Returns (B, H, Q, K). Proportions stay the
    same within the system prompt and outside it. A row with p = 0 or p = 1 stays as it is.
    """
    span = system[:, None, None, :].to(weights.dtype)
    mass = (weights * span).sum(-1, keepdim=True)
    movable = (mass > 0) & (mass < 1)
    p = torch.where(movable, mass, 0.5)
    inside, outside = p**k / p, (1 - p**k) / (1 - p)
    return torch.where(movable, weights * (span * inside + (1 - span) * outside), weights)
