"""Compares a sampler's distribution with the trainer's: the mass that top-p keeps, and the mismatch of log-probs."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_log_mass(logits: Tensor, top_p: float) -> Tensor:
    """Return the log of the probability mass that top-p sampling keeps, shape (...).

    logits: (..., V), after the temperature. Top-p keeps the most probable tokens, up to the token with which their sum
    reaches `top_p` (Holtzman et al. 2020). A kept token's log-prob under the distribution that was sampled is its
    log-prob under the whole distribution minus this value.
    """
    probabilities = logits.float().softmax(-1).sort(-1, descending=True).values
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0).sum(-1).log()


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
