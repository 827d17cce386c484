"""The policy-gradient loss: the loss on tokens that the policy itself sampled.

    L = - E[w min(r A, clip(r, 1 - eps, 1 + eps) A)] + beta E[kl] - c E[H]

r     importance ratio pi / pi_old of a token or of a whole row (PPO, arXiv 1707.06347, eq. 7; `importance_ratio`)
A     advantage, constant in the loss (`objectives/advantages.py`)
w     pi_old / pi_sampler, where the sampler's probabilities are not those of pi_old (`truncated_weights`)
kl    estimate of KL(pi || pi_ref) at a token (`k3`)
H     entropy of the policy's next-token distribution

GRPO (arXiv 2402.03300, eq. 3-4) is this loss with A normalised in the group. PACT's L^x (eq. 4-5) is this loss with the
log-probs under the prompt x, and L^h (eq. 7-8) with the log-probs under [x; h*], the prompt and an expert trace. CHORD,
LUFFY and HIPO put other weights on it.

pi_old is the policy at the beginning of a rollout batch's updates. If it sampled the batch as well, w = 1. vLLM differs
from it by rounding, and with rollout.ahead=1 vLLM samples with the weights before the last batch's updates. Then w r is
the ratio of pi to the policy that sampled, and the clip still holds pi near pi_old: the decoupled objective of Hilton
et al. (arXiv 2110.00641), with pi_old for the proximal policy. PACT's L^h takes w under x, where its rollouts were
sampled. The KL and entropy terms are not weighed, as in TRL.

Shape suffixes: B rows (one rollout each), C completion tokens. R is C if each token has a ratio, and 1 if each row has
one. `mask` is 1 on the tokens to train on. Values outside the mask are never read, so they may be NaN or infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.objectives.choices import Aggregation, RatioLevel


@dataclass(frozen=True)
class PolicyBatch:
    """The tensors of some rollouts. Gradients flow only through `logps` and `entropies`."""

    logps: Tensor  # (B, C) log pi of the sampled tokens
    advantages: Tensor  # (B, C), or (B, 1) for one value per row
    mask: Tensor  # (B, C)
    entropies: Tensor  # (B, C) H
    old: Tensor | None = None  # (B, C) log pi_old; None takes the present pi, so every ratio is 1
    reference: Tensor | None = None  # (B, C) log pi_ref; needed where kl_coef > 0
    sampler_weights: Tensor | None = None  # (B, C) w; None takes 1


@dataclass(frozen=True)
class PolicySettings:
    """The variant of the loss."""

    clip_eps: float = 0.2  # eps; infinity removes the clip
    level: RatioLevel = "token"  # what the ratio belongs to, see `importance_ratio`
    aggregation: Aggregation = "sequence"  # how tokens are averaged, see `average`
    kl_coef: float = 0.0  # beta
    kl_ratio_correction: bool = False  # multiply kl by r
    entropy_coef: float = 0.0  # c
    dual_clip: float = math.inf  # if A < 0, the surrogate is at least dual_clip * A; infinity removes this bound


def policy_loss(
    batch: PolicyBatch,
    settings: PolicySettings,
    tokens: Tensor | float | None = None,
    rows: int | None = None,
    trained: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the module's docstring. Returns the loss, a scalar, and its metrics.

    `tokens` is the denominator of aggregation 'token' and `rows` that of 'sequence', see `average`. The entropy term is
    always a mean over tokens, and `trained` is its denominator. If the batch is a piece of a mini-batch, `rows` and
    `trained` are the numbers of the mini-batch. The losses of the pieces then sum to its loss. None takes the numbers
    of the batch itself.

    Metrics have no gradient. 'policy_loss' is the loss without its entropy term, a scalar. The other metrics are values
    of each token (B, C), to be averaged over `mask`: 'entropy', 'kl' (with its correction, only if kl_coef > 0),
    'clip_low' and 'clip_high' (1 where the clip removes the gradient: below 1 - eps, and above 1 + eps or c).

    Raises ValueError on differing shapes, on an unknown level or aggregation, and if `reference` or `tokens` is needed
    but missing.
    """
    ratio, advantages = _ratio(batch, settings), _masked(batch.advantages, batch.mask)
    per_token = -clipped_surrogate(ratio, advantages, settings.clip_eps, settings.dual_clip)
    if batch.sampler_weights is not None:
        per_token = per_token * _masked(batch.sampler_weights, batch.mask)
    metrics = {"entropy": batch.entropies.detach(), **_clipped(ratio, advantages, settings)}
    if settings.kl_coef > 0:
        kl = _divergence(batch, ratio, settings)
        per_token = per_token + settings.kl_coef * kl
        metrics["kl"] = kl.detach()
    loss = average(per_token, batch.mask, settings.aggregation, tokens, rows)
    metrics["policy_loss"] = loss.detach()
    if settings.entropy_coef != 0:
        count = torch.as_tensor(batch.mask.sum() if trained is None else trained).clamp(min=1)
        loss = loss - settings.entropy_coef * average(batch.entropies, batch.mask, "token", count)
    return loss, metrics


def divergence_loss(
    batch: PolicyBatch, settings: PolicySettings, tokens: Tensor | float | None = None, rows: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute beta E[kl] alone. Returns the loss, a scalar, and its metrics.

    PACT with kl_context=prompt needs it: its KL term uses other log-probs than its ratio.
    `tokens` and `rows` are those of `policy_loss`. Metrics: 'kl' of each token (B, C). Raises ValueError as
    `policy_loss` does.
    """
    kl = _divergence(batch, _ratio(batch, settings), settings)
    return settings.kl_coef * average(kl, batch.mask, settings.aggregation, tokens, rows), {"kl": kl.detach()}


def importance_ratio(log_ratio: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Compute r (B, R) from log pi - log pi_old (B, C), which must be 0 outside `mask` (B, C).

    token          pi / pi_old of each token (PPO, GRPO)
    sequence_mean  its geometric mean over the row's tokens (GSPO, arXiv 2507.18071, eq. 7); 1 for a row without tokens
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


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_eps: float, dual_clip: float = math.inf) -> Tensor:
    """Return min(r A, clip(r, 1 - eps, 1 + eps) A), to be maximised (PPO, eq. 7; PACT, eq. 5). Shapes broadcast.

    Where A < 0 it is min(r, c) A for r > 1 + eps: without `dual_clip` c it has no bound (arXiv 1912.09729, eq. 8).
    """
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)
    if math.isinf(dual_clip):
        return surrogate
    return torch.where(advantages < 0, torch.max(surrogate, dual_clip * advantages), surrogate)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Return exp(d) - d - 1 >= 0 with d = log pi_ref - log pi, of any shape (GRPO, eq. 4).

    Its mean over tokens that pi sampled is KL(pi || pi_ref), but its gradient is not the gradient of the KL. If pi_old
    sampled the tokens, its product with the importance ratio estimates the KL (DeepSeek-V3.2, arXiv 2512.02556).
    """
    delta = reference - logps
    return delta.exp() - delta - 1


def truncated_weights(old: Tensor, sampled: Tensor, mask: Tensor, cap: float, level: RatioLevel = "token") -> Tensor:
    """Compute w = min(pi_old / pi_sampler, cap) of each token (B, C): truncated importance sampling.

    w has no gradient. old, sampled: (B, C) log-probs of the same tokens, from the trainer and from the sampler.
    mask: (B, C). level: that of r (`importance_ratio`). If the cap does not cut w, w r is the ratio pi / pi_sampler of
    that level. If rows have ratios, all tokens of a row have the same weight.
    Tokens without a log-prob of the sampler (NaN) count as if both agreed, and so do tokens outside the mask.
    """
    difference = (old - sampled).masked_fill(mask == 0, 0).nan_to_num(nan=0.0)
    return importance_ratio(difference, mask, level).clamp(max=cap).detach().expand(mask.shape)


def average(
    values: Tensor,
    mask: Tensor,
    aggregation: Aggregation,
    tokens: Tensor | float | None = None,
    rows: int | None = None,
) -> Tensor:
    """Average the values (B, R) over the tokens of the mask (B, C). Returns a scalar.

    sequence  the mean over each row's tokens, then the sum over the rows / `rows` (None takes B, which makes it the
              mean); a row without tokens counts as 0
    token     the sum over all tokens / `tokens`. `tokens` is the number of tokens in an average mini-batch of the
              rollout batch
    Raises ValueError on another aggregation, and if 'token' comes without `tokens`.
    """
    if aggregation == "sequence":
        return row_means(values, mask).sum() / (len(mask) if rows is None else rows)
    if aggregation != "token":
        raise ValueError(f"unknown aggregation {aggregation!r}")
    if tokens is None:
        raise ValueError("aggregation 'token' needs `tokens`, the denominator of the sum")
    return _masked(values, mask).sum() / tokens


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B,) of values (B, R) over each row's tokens in the mask (B, C), 0 for a row without tokens."""
    return _masked(values, mask).sum(1) / mask.sum(1).clamp(min=1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return values.expand(mask.shape).masked_fill(mask == 0, 0)


def _ratio(batch: PolicyBatch, settings: PolicySettings) -> Tensor:
    """Compute r (B, R) of a batch. Raises ValueError if its shapes do not fit."""
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
    """Compute kl (B, C), 0 outside the mask. Raises ValueError if the reference is missing."""
    if batch.reference is None:
        raise ValueError("a KL term (kl_coef > 0) needs the reference policy's log-probs")
    kl = k3(_masked(batch.logps, batch.mask), _masked(batch.reference, batch.mask))
    return kl * ratio if settings.kl_ratio_correction else kl


def _clipped(ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> dict[str, Tensor]:
    """Return two masks (B, R): 1 where the surrogate is clipped below, and where it is clipped above."""
    low = (ratio < 1 - settings.clip_eps) & (advantages < 0)
    high = (ratio > 1 + settings.clip_eps) & (advantages > 0)
    high = high | ((ratio > settings.dual_clip) & (advantages < 0))
    return {"clip_low": low.float(), "clip_high": high.float()}
