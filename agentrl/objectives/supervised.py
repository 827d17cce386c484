"""The supervised loss: the loss on tokens of an expert trace h*, which an expert wrote.

    L = mean over prompts of -(1/Z) sum_n w_n log pi(h*_n | x, h*_<n)

A method chooses the weights w, and for each trace its own denominator Z, so that one trace never rescales another:

PACT     w = m_n(s) of eq. 9, Z = sum_n m_n (eq. 10) or the number of targets (`objectives/pact.py`)
CHORD    w = 1 or p (1 - p), Z the number of targets (`objectives/chord.py`)

Two methods differ. SFT takes the mean over the targets of all traces together (`token_nll`). LUFFY gives expert tokens
an advantage and a shaped ratio (`objectives/luffy.py`).

Shape suffixes: S expert traces, L tokens of a trace.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_nll(logps: Tensor, weights: Tensor, z: Tensor) -> Tensor:
    """Compute -(1/Z) sum_n w_n log pi(h*_n | x, h*_<n) of each trace (S,). Loss and gradient are exactly 0 if Z = 0.

    logps: (S, L); weights: (S, L), >= 0 and 0 on padding, without a gradient; z: (S,), >= 0. Log-probs of tokens with
    weight 0 are never read, so they may be -inf or NaN. Raises ValueError on differing shapes.
    """
    if logps.dim() != 2 or logps.shape != weights.shape or z.shape != logps.shape[:1]:
        raise ValueError(
            f"logps {tuple(logps.shape)} and weights {tuple(weights.shape)} must both be (S, L), "
            f"z {tuple(z.shape)} (S,)"
        )
    weights, z = weights.detach().to(logps.dtype), z.to(logps.dtype)
    total = -(weights * logps.masked_fill(weights == 0, 0)).sum(1)
    return total / torch.where(z > 0, z, torch.ones_like(z))


def token_nll(logps: Tensor, targets: Tensor | float) -> Tensor:
    """Compute -(1/N) sum log pi over the targets of all traces (SFT), with equal weights. Returns a scalar.

    logps: (T,) log-probs of targets; `targets` is N, their number. If these are a piece of a mini-batch, N is the
    number of the mini-batch, and the losses of the pieces sum to its loss. Without a target (N = 0) the loss is 0.
    """
    count = torch.as_tensor(targets)
    return -logps.sum() / torch.where(count > 0, count, 1)


def prompt_mean(losses: Tensor, group_size: int, rows: int) -> Tensor:
    """Compute (K / rows) * sum, the mean over a batch's prompts of a loss that only some prompts have (PACT, eq. 14).

    losses: (S,), one for each trace present; a prompt without a trace counts as 0, and so does an anchored prompt.
    `rows` is the number of rollout rows of the mini-batch, and each prompt has K rows (`group_size`). If the traces of
    a mini-batch are split into pieces, the values of the pieces sum to its value. Returns a scalar. Raises ValueError
    unless group_size and rows are positive.
    """
    if group_size <= 0 or rows <= 0:
        raise ValueError(f"group_size {group_size} and rows {rows} must be above 0")
    return losses.sum() * (group_size / rows)
