"""The policy-gradient stream: the loss on tokens that the policy sampled itself.

    L = - E[w min(r A, clip(r, 1 - eps, 1 + eps) A)] + beta E[kl] - c E[H]

r     importance ratio pi / pi_old of a token or of a whole row (PPO, arXiv 1707.06347, eq. 7; `importance_ratio`)
A     advantage, constant in the loss (`objectives/advantages.py`)
w     correction for a sampler whose probabilities are not quite those of pi_old (`truncated_weights`)
kl    estimate of KL(pi || pi_ref) at a token (`k3`)
H     entropy of the policy's next-token distribution

GRPO (arXiv 2402.03300, eq. 3-4) is this loss with A normalised in the group. PACT's L^x (eq. 4-5) and L^h (eq. 7-8) are
this loss with the log-probs of a row under x or under [x; h*]. CHORD, LUFFY and HIPO put other weights on it.

Shape suffixes: B rows (one rollout each), C completion tokens. R is C where each token has a ratio, and 1 where a row
has one. `mask` is 1 on the tokens that are trained on. What stands elsewhere is never read: it may be NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyBatch:
    """What the loss reads of a micro-batch of rollouts. Gradients flow through `logps` and `entropies` alone."""

    logps: Tensor  # (B, C) log pi of the sampled tokens
    advantages: Tensor  # (B, C), or (B, 1) for one value a row
    mask: Tensor  # (B, C)
    entropies: Tensor  # (B, C) H
    old: Tensor | None = None  # (B, C) log pi_old; None: pi_old is pi as it stands, so that every ratio is 1
    reference: Tensor | None = None  # (B, C) log pi_ref; needed where kl_coef > 0
    sampler_weights: Tensor | None = None  # (B, C) w; None: 1


@dataclass(frozen=True)
class PolicySettings:
    """Which variant of the loss."""

    clip_eps: float = 0.2  # eps; infinity removes the clip
    level: str = "token"  # of the ratio, see `importance_ratio`
    aggregation: str = "sequence"  # how tokens are averaged, see `average`
    kl_coef: float = 0.0  # beta
    kl_ratio_correction: bool = False  # multiply kl by r
    entropy_coef: float = 0.0  # c


def policy_loss(
    batch: PolicyBatch, settings: PolicySettings, tokens: Tensor | float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the module's docstring, a scalar, and what it was made of.

    `tokens` is the denominator of aggregation 'token', see `average`. The entropy term is a mean over the tokens of the
    micro-batch in either aggregation.

    Metrics have no gradient. 'policy_loss' is the loss without its entropy term, a scalar. The others are values for
    each token (B, C), to be averaged over `mask`: 'entropy', 'kl' (with its correction; where kl_coef > 0), 'clip_low'
    and 'clip_high' (1 where the clip takes the gradient away, below and above).
    Raises ValueError on differing shapes, an unknown level or aggregation, or where a term lacks what it needs.
    """
    ratio, advantages = _ratio(batch, settings), _masked(batch.advantages, batch.mask)
    per_token = -clipped_surrogate(ratio, advantages, settings.clip_eps)
    if batch.sampler_weights is not None:
        per_token = per_token * _masked(batch.sampler_weights, batch.mask)
    metrics = {"entropy": batch.entropies.detach(), **_clipped(ratio, advantages, settings.clip_eps)}
    if settings.kl_coef > 0:
        kl = _divergence(batch, ratio, settings)
        per_token = per_token + settings.kl_coef * kl
        metrics["kl"] = kl.detach()
    loss = average(per_token, batch.mask, settings.aggregation, tokens)
    metrics["policy_loss"] = loss.detach()
    if settings.entropy_coef != 0:
        count = batch.mask.sum().clamp(min=1)
        loss = loss - settings.entropy_coef * average(batch.entropies, batch.mask, "token", count)
    return loss, metrics


def divergence_loss(
    batch: PolicyBatch, settings: PolicySettings, tokens: Tensor | float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """beta E[kl] alone, a scalar: for a KL term whose log-probs are not those of the ratio (PACT, kl_context=prompt).

    Metrics: 'kl' for each token (B, C). Raises as `policy_loss` does.
    """
    kl = _divergence(batch, _ratio(batch, settings), settings)
    return settings.kl_coef * average(kl, batch.mask, settings.aggregation, tokens), {"kl": kl.detach()}


def importance_ratio(log_ratio: Tensor, mask: Tensor, level: str) -> Tensor:
    """r (B, R) from log pi - log pi_old (B, C), which is 0 outside `mask` (B, C).

    token          pi / pi_old of each token (PPO, GRPO)
    sequence_mean  its geometric mean over the row's tokens (GSPO, arXiv 2507.18071, eq. 7); 1 for a row without any
    sequence       the product over the row's tokens, pi(y|x) / pi_old(y|x) (HIPO)
    Raises ValueError on another level.
    """
    if level == "token":
        return log_ratio.exp()
    total = (log_ratio * mask).sum(1, keepdim=True)
    if level == "sequence_mean":
        total = total / mask.sum(1, keepdim=True).clamp(min=1)
    elif level != "sequence":
        raise ValueError(f"unknown level {level!r} of the importance ratio")
    return total.exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_eps: float) -> Tensor:
    """min(r A, clip(r, 1 - eps, 1 + eps) A) (PPO, eq. 7; PACT, eq. 5), to be maximised. Shapes broadcast."""
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 >= 0 with d = log pi_ref - log pi, of any shape (GRPO, eq. 4).

    Over tokens that pi sampled its mean is KL(pi || pi_ref), and its gradient is not that of the KL. Multiplied by the
    importance ratio it estimates the KL where pi_old sampled (DeepSeek-V3.2, arXiv 2512.02556).
    """
    delta = reference - logps
    return delta.exp() - delta - 1


def truncated_weights(old: Tensor, sampled: Tensor, mask: Tensor, cap: float) -> Tensor:
    """w = min(pi_old / pi_sampler, cap) of each token (B, C): truncated importance sampling. Without a gradient.

    old, sampled: (B, C) log-probs of the same tokens as the trainer and as the sampler computed them; `mask` (B, C).
    A token that the sampler gave no log-prob for (NaN) weighs 1, as do those outside the mask.
    """
    difference = (old - sampled).masked_fill(mask == 0, 0)
    return difference.nan_to_num(nan=0.0).exp().clamp(max=cap).detach()


def average(values: Tensor, mask: Tensor, aggregation: str, tokens: Tensor | float | None = None) -> Tensor:
    """One number from the values (B, R) of the masked tokens (B, C).

    sequence  mean over each row's tokens, then over the rows; a row without tokens counts as 0
    token     sum over all tokens / `tokens`. To make the mean over the micro-batches of an update the mean over its
              tokens, `tokens` must be the number that an average micro-batch of the update has, not this one's own
    Raises ValueError on another aggregation, or where 'token' comes without `tokens`.
    """
    if aggregation == "sequence":
        return row_means(values, mask).mean()
    if aggregation != "token":
        raise ValueError(f"unknown aggregation {aggregation!r}")
    if tokens is None:
        raise ValueError("aggregation 'token' needs `tokens`, the denominator of the sum")
    return _masked(values, mask).sum() / tokens


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of the values (B, R) over each row's masked tokens (B, C); 0 for a row without any."""
    return _masked(values, mask).sum(1) / mask.sum(1).clamp(min=1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return values.expand(mask.shape).masked_fill(mask == 0, 0)


def _ratio(batch: PolicyBatch, settings: PolicySettings) -> Tensor:
    """r (B, R) of a batch whose shapes fit."""
    shape = batch.logps.shape
    others = {name: getattr(batch, name) for name in ("mask", "entropies", "old", "reference", "sampler_weights")}
    for name, value in others.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, logps {tuple(shape)}; both must be (B, C)")
    if batch.advantages.shape not in (shape, (shape[0], 1)):
        raise ValueError(f"advantages have shape {tuple(batch.advantages.shape)}, not {tuple(shape)} or (B, 1)")
    old = batch.logps.detach() if batch.old is None else batch.old
    return importance_ratio(_masked(batch.logps - old, batch.mask), batch.mask, settings.level)


def _divergence(batch: PolicyBatch, ratio: Tensor, settings: PolicySettings) -> Tensor:
    """kl (B, C), 0 outside the mask."""
    if batch.reference is None:
        raise ValueError("a KL term (kl_coef > 0) needs the reference policy's log-probs")
    kl = k3(_masked(batch.logps, batch.mask), _masked(batch.reference, batch.mask))
    return kl * ratio if settings.kl_ratio_correction else kl


def _clipped(ratio: Tensor, advantages: Tensor, eps: float) -> dict[str, Tensor]:
    """Where the minimum is the clipped value (B, C)."""
    low, high = (ratio < 1 - eps) & (advantages < 0), (ratio > 1 + eps) & (advantages > 0)
    return {"clip_low": low.float(), "clip_high": high.float()}
