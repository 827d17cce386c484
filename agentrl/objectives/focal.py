"""FocalLoRA: finds the attention heads that conflicts disturb, and a loss that turns them to the system prompt.

A conflict is a prompt whose system and user messages contradict each other.

Shapes: L layers, H heads, N prompts, B rows, Q queries, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def conflict_sensitivity(conflict: Tensor, aligned: Tensor) -> Tensor:
    """How much each head's mean mass on the system prompt differs: (N, L, H) and (N', L, H) -> (L, H)."""
    return (conflict.mean(0) - aligned.mean(0)).abs()


def most_sensitive(sensitivity: Tensor, share: float) -> Tensor:
    """Mask (L, H) of the ceil(L * H * share) heads of the network with the largest sensitivity (L, H)."""
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
    """L = -(1/N) sum log(m + eps), where m is the attention mass that a chosen head puts on the system prompt.

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
    total = masses.numel() if count is None else count
    return -(masses + eps).log().sum() / total, masses.detach().sum() / total
