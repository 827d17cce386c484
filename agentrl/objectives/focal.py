"""FocalLoRA: chooses the attention heads that react to conflicts, and a loss that raises their system attention.

A conflict is a prompt whose system and user messages contradict each other.

Shapes: L layers, H heads, N prompts, B rows, Q queries, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def conflict_sensitivity(conflict: Tensor, aligned: Tensor) -> Tensor:
    """Return how much each head's mean mass on the system prompt differs between conflicting and aligned prompts.

    conflict: (N, L, H) and aligned: (N', L, H) are masses. Returns (L, H), >= 0.
    """
    return (conflict.mean(0) - aligned.mean(0)).abs()


def most_sensitive(sensitivity: Tensor, share: float) -> Tensor:
    """Return the mask (L, H) of the ceil(L * H * share) heads with the largest sensitivity (L, H) in the network."""
    count = math.ceil(sensitivity.numel() * share)
    mask = torch.zeros(sensitivity.numel(), dtype=torch.bool, device=sensitivity.device)
    mask[sensitivity.flatten().topk(count).indices] = True
    return mask.view_as(sensitivity)


def focal_loss(
    attentions: Sequence[Tensor],
    system: Tensor,
    queries: Tensor,
    heads: Tensor,
    count: Tensor | float | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute L = -(1/N) sum log(m + eps). m is the attention mass that a chosen head puts on the system prompt.

    attentions: L tensors (B, H, T, T); system: mask (B, T) of the system prompt's keys; queries: mask (B, T) of the
    positions that count; heads: mask (L, H). The sum is over all chosen (row, query, head). `count` is N, their number
    in the mini-batch of which these rows are a piece: the losses of the pieces then sum to its loss. None takes the
    number in these rows. Returns the loss and, without a gradient, (1/N) sum m; both are scalars.
    """
    chosen = []
    for layer, attention in enumerate(attentions):
        if heads[layer].any():
            mass = (attention * system[:, None, None, :]).sum(-1)  # (B, H, T)
            chosen.append(mass.transpose(1, 2)[queries][:, heads[layer]].flatten())
    masses = torch.cat(chosen)
    masses = masses.to(torch.promote_types(masses.dtype, torch.float32))  # bfloat16 is too coarse for a logarithm
    total = torch.as_tensor(masses.numel() if count is None else count)
    total = torch.where(total > 0, total, 1)  # all replies are empty: the loss is 0
    return -(masses + eps).log().sum() / total, masses.detach().sum() / total
