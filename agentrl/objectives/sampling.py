"""How a sampler's distribution compares with the trainer's: what top-p keeps of it, and how far the two are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_log_mass(logits: Tensor, top_p: float) -> Tensor:
    """log of the probability that top-p sampling keeps, for logits (..., V) after the temperature; shape (...).

    Kept are the most probable tokens up to the one with which their sum reaches `top_p` (Holtzman et al. 2020). The
    log-prob of a kept token under the distribution that was sampled is its own minus this.
    """
    probabilities = logits.float().softmax(-1).sort(-1, descending=True).values
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0).sum(-1).log()


def sampler_mismatch(old: Tensor, sampled: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the trainer's policy is from the sampler's, over the masked tokens (B, C) that the sampler sampled.

    old, sampled: (B, C) log-probs of the same tokens by either; d = old - sampled. Scalars: kl, the mean of
    exp(d) - d - 1, which estimates KL(sampler || trainer) (Schulman's k3); ratio_mean and ratio_max of exp(d), before
    any truncation. Tokens that the sampler gave no log-prob for (NaN) are left out; without any, all three are NaN.
    """
    difference = (old.double() - sampled.double())[(mask != 0) & ~sampled.isnan()]
    if not difference.numel():
        return dict.fromkeys(("kl", "ratio_mean", "ratio_max"), torch.tensor(float("nan"), device=old.device))
    ratio = difference.exp()
    kl = (difference.expm1() - difference).mean()
    return {"kl": kl, "ratio_mean": ratio.mean(), "ratio_max": ratio.max()}
