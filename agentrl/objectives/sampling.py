"""Compares a sampler's distribution with the trainer's: the mass that top-p keeps, and the mismatch of log-probs."""

from __future__ import annotations

import torch
from torch import Tensor

LIKELY = 256  # tokens of a row that are sorted first: they nearly always hold top-p, and sorting all would take longer


def kept_log_mass(logits: Tensor, top_p: float) -> Tensor:
    """Return the log of the probability mass that top-p sampling keeps, shape (...).

    logits: (..., V), after the temperature. A kept token's log-prob under the distribution that was sampled is its
    log-prob under the whole distribution minus this value.
    """
    probs = logits.float().softmax(-1)
    return keep_top_p(probs.view(-1, probs.shape[-1]), top_p).sum(-1).log().view(probs.shape[:-1])


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens of each row (B, V), up to the one that takes their sum to top_p; the others get 0.

    This is the rule of top-p sampling (Holtzman et al. 2020). Only the LIKELY likeliest are sorted. A row in which
    these do not reach top_p is sorted whole.
    """
    best, index = probs.topk(min(LIKELY, probs.shape[-1]))
    total = best.double().cumsum(-1)
    kept = torch.zeros_like(probs).scatter_(-1, index, best.masked_fill(total - best >= top_p, 0))
    short = total[:, -1] < top_p
    if best.shape[-1] < probs.shape[-1] and short.any():
        best, index = probs[short].sort(dim=-1, descending=True)
        best = best.masked_fill(best.double().cumsum(-1) - best >= top_p, 0)
        kept[short] = torch.zeros_like(best).scatter_(-1, index, best)
    return kept


def mismatch_by_token(old: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Compare log-probs (...) of the same tokens under the trainer and under the sampler. Return two tensors (...).

    With d = old - sampled: exp(d) - d - 1, whose mean over sampled tokens estimates KL(sampler || trainer) (Schulman's
    k3), and the ratio exp(d).
    """
    difference = old.double() - sampled.double()
    return difference.expm1() - difference, difference.exp()


def sampler_mismatch(old: Tensor, sampled: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Measure how far the trainer's policy is from the sampler's, over the tokens of the mask (B, C).

    old, sampled: (B, C) log-probs of the same tokens under the trainer and under the sampler.
    Returns scalars: 'kl' is the mean of the first value of `mismatch_by_token`, 'ratio_mean' and 'ratio_max' are the
    mean and the maximum of the second, before any truncation. Tokens without a log-prob of the sampler (NaN) are left
    out. If no token is left, all three are NaN.
    """
    kept = (mask != 0) & ~sampled.isnan()
    if not kept.any():
        return dict.fromkeys(("kl", "ratio_mean", "ratio_max"), torch.tensor(float("nan"), device=old.device))
    kl, ratio = mismatch_by_token(old[kept], sampled[kept])
    return {"kl": kl.mean(), "ratio_mean": ratio.mean(), "ratio_max": ratio.max()}
