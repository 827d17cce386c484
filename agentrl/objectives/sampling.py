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


def sampler_mismatch(old: Tensor, sampled: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Measure how far the trainer's policy is from the sampler's, over the tokens of the mask (B, C).

    old, sampled: (B, C) log-probs of the same tokens under the trainer and under the sampler; d = old - sampled.
    Returns scalars: 'kl', the mean of exp(d) - d - 1, which estimates KL(sampler || trainer) (Schulman's k3);
    'ratio_mean' and 'ratio_max', the mean and the maximum of exp(d) before any truncation. Tokens without a log-prob of
    the sampler (NaN) are left out. If no token is left, all three are NaN.
    """
    difference = (old.double() - sampled.double())[(mask != 0) & ~sampled.isnan()]
    if not difference.numel():
        return dict.fromkeys(("kl", "ratio_mean", "ratio_max"), torch.tensor(float("nan"), device=old.device))
    ratio = difference.exp()
    kl = (difference.expm1() - difference).mean()
    return {"kl": kl, "ratio_mean": ratio.mean(), "ratio_max": ratio.max()}
