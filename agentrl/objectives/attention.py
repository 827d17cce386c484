"""Where attention goes as the response begins (HIPO, Table 3), and Split-Softmax. Pure functions of tensors.

Shapes: L layers, H heads, T prompt tokens, B rows, Q queries, K keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAR, NEAR = 0.8, 0.2  # the farthest and the closest fifth of the prompt
BINS = 20  # of relative distance, in profiles
MEASURES = ("centroid", "far_mass", "near_mass", "far_near", "system_mass", "user_mass", "system_user")


def relative_distance(length: int, device: torch.device | None = None) -> Tensor:
    """d(k) = (q - k) / q (T,) from the last prompt token q = T - 1: 1 at the first token, 0 at q itself."""
    last = length - 1
    return (last - torch.arange(length, dtype=torch.float64, device=device)) / max(last, 1)


def far_heads(attention: Tensor, alpha: float) -> Tensor:
    """Mask (L, H) of the ceil(H * alpha) heads of each layer that look farthest, by expected distance."""
    expected = attention.double() @ relative_distance(attention.shape[-1], attention.device)
    heads = attention.shape[1]
    chosen = expected.topk(math.ceil(heads * alpha), dim=1).indices
    return torch.zeros(attention.shape[:2], dtype=torch.bool, device=attention.device).scatter(1, chosen, True)


def onset_measures(attention: Tensor, system: Tensor, user: Tensor, alpha: float) -> dict[str, float]:
    """HIPO's Table 3 for one prompt, from the attention (L, H, T) of its last token and the spans' masks (T,).

    Averages over the heads that `far_heads` picks: `centroid` (expected distance), `far_mass` and `near_mass` (mass on
    the farthest and the closest fifth), `system_mass` and `user_mass`; then the ratios `far_near` and `system_user`,
    NaN where nothing is below the line. `alpha` in (0, 1].
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


def profile(attention: Tensor, alpha: float) -> Tensor:
    """Mass (BINS,) by relative distance, closest first, averaged over the heads that `far_heads` picks."""
    weights = attention.double()[far_heads(attention, alpha)].mean(0)
    bins = (relative_distance(len(weights), weights.device) * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(BINS, dtype=torch.float64, device=weights.device).index_add(0, bins, weights)


def split_softmax(weights: Tensor, system: Tensor, k: float) -> Tensor:
    """Attention (B, H, Q, K) with the mass p on `system` keys (B, K) raised to p^k, k in (0, 1]; rows still sum to 1.

    Within the span and outside it, proportions stay. Rows with all mass or none on the span stay as they are: there is
    nothing to take, or nothing to scale.
    """
    span = system[:, None, None, :].to(weights.dtype)
    mass = (weights * span).sum(-1, keepdim=True)
    movable = (mass > 0) & (mass < 1)
    p = torch.where(movable, mass, 0.5)
    inside, outside = p**k / p, (1 - p**k) / (1 - p)
    return torch.where(movable, weights * (span * inside + (1 - span) * outside), weights)
