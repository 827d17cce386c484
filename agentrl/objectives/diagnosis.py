"""Measures of a method with expert traces: gradients of its loss terms, the tokens that they change, and how a trace
shifts the log-probs of a rollout.

x is the prompt, h the trace, y a rollout that was sampled under x alone. Shapes: B rollouts, C completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IMPROBABLE = 0.01  # a token with a smaller probability counts as improbable: it is practically excluded already

Gradient = Sequence[Tensor | None]  # one tensor per parameter; None if the term does not depend on the parameter


def dot(one: Gradient, other: Gradient) -> float:
    """Return the inner product of two gradients, computed in float64."""
    pairs = zip(one, other, strict=True)
    return float(sum((a.double() * b.double()).sum().item() for a, b in pairs if a is not None and b is not None))


def compare_gradients(gradients: dict[str, Gradient]) -> dict[str, float]:
    """Return norm_A of each gradient and cos_A_B of each pair. The cosine is NaN if one of the two gradients is 0."""
    norms = {name: math.sqrt(dot(gradient, gradient)) for name, gradient in gradients.items()}
    found = {f"norm_{name}": norm for name, norm in norms.items()}
    names = list(gradients)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            scale = norms[first] * norms[second]
            inner = dot(gradients[first], gradients[second])
            found[f"cos_{first}_{second}"] = inner / scale if scale > 0 else math.nan
    return found


def pull(logps: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return |A| (1 - p) of each token (B, C): the size of the loss's gradient in the logit of the sampled token.

    logps: (B, C) log p; advantages: (B, C). It is 0 for a token that is already certain (p = 1) and outside the mask.
    """
    return (advantages.abs() * -logps.detach().expm1()).masked_fill(mask == 0, 0)


def describe_context(logps: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure which tokens the loss under one context changes. Return three values.

    pull_good   mean of `pull` over the tokens with A > 0
    pull_bad    mean of `pull` over the tokens with A < 0
    improbable  of the total pull on tokens with A < 0, the share on tokens with p < IMPROBABLE
    A value is NaN if there are no such tokens, or if the total pull is 0.
    """
    force, on = pull(logps, advantages, mask), mask != 0
    good, bad = on & (advantages > 0), on & (advantages < 0)
    excluded = bad & (logps < math.log(IMPROBABLE))
    return {
        "pull_good": _mean(force, good),
        "pull_bad": _mean(force, bad),
        "improbable": _ratio(force[excluded].sum(), force[bad].sum()),
    }


def describe_shift(under_h: Tensor, under_x: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Return the mean of d_t = log p(y_t|x,h) - log p(y_t|x) over tokens with A > 0 (shift_good) and A < 0 (shift_bad).

    under_h, under_x: (B, C) log p(y_t|x,h) and log p(y_t|x). It is NaN if there are no such tokens.
    """
    shift, on = (under_h - under_x).detach(), mask != 0
    return {
        "shift_good": _mean(shift, on & (advantages > 0)),
        "shift_bad": _mean(shift, on & (advantages < 0)),
    }


def _mean(values: Tensor, chosen: Tensor) -> float:
    return _ratio(values.masked_fill(~chosen, 0).sum(), chosen.sum())


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else torch.nan
