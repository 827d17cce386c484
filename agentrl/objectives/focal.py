"""FocalLoRA: which heads conflicts disturb, and a loss that turns them to the system prompt. Pure torch.

Shapes: L layers, H heads, N prompts, B rows, Q queries, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def conflict_sensitivity(conflict: Tensor, aligned: Tensor) -> Tensor:
    """How far the mean mass on the system span of each head differs: (N, L, H) and (N', L, H) -> (L, H)."""
    return (conflict.mean(0) - aligned.mean(0)).abs()


def most_sensitive(sensitivity: Tensor, share: float) -> Tensor:
    """Mask (L, H) of the ceil(L * H * share) heads of the whole network that differ most."""
    count = math.ceil(sensitivity.numel() * share)
    mask = torch.zeros(sensitivity.numel(), dtype=torch.bool, device=sensitivity.device)
    mask[sensitivity.flatten().topk(count).indices] = True
    return mask.view_as(sensitivity)


def focal_loss(
    attentions: Sequence[Tensor], system: Tensor, queries: Tensor, heads: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """-mean log of the mass that chosen heads put on the system span at chosen queries, and the mean mass (detached).

    `attentions`: L of (B, H, T, T); `system` (B, T) keys of the span; `queries` (B, T) positions that count; `heads`
    (L, H). The mean is over all (row, query, head) that count.
    """
    chosen = []
    for layer, attention in enumerate(attentions):
        if heads[layer].any():
            mass = (attention * system[:, None, None, :]).sum(-1)  # (B, H, T)
            chosen.append(mass.transpose(1, 2)[queries][:, heads[layer]].flatten())
    masses = torch.cat(chosen)
    masses = masses.to(torch.promote_types(masses.dtype, torch.float32))  # logarithms want more than bfloat16
    return -(masses + eps).log().mean(), masses.detach().mean()
