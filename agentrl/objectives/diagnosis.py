"""What the terms of a method with expert traces pull at, and what a trace does to the tokens of a rollout.

x is the prompt, h the trace, y a rollout that was sampled from x alone. Shapes: B rollouts, C completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IMPROBABLE = 0.01  # a token with a smaller probability was as good as excluded

Gradient = Sequence[Tensor | None]  # one for each parameter; None: the term does not read it


def dot(one: Gradient, other: Gradient) -> float:
    """The inner product of two gradients, in float64."""
    pairs = zip(one, other, strict=True)
    return float(sum((a.double() * b.double()).sum().item() for a, b in pairs if a is not None and b is not None))


def compare_gradients(gradients: dict[str, Gradient]) -> dict[str, float]:
    """norm_A of each gradient, and cos_A_B of each pair; NaN where one of the two is 0."""
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
    """|A| (1 - p) of each token (B, C), 0 outside the mask: how hard the loss moves the logit of the sampled token.

    logps: (B, C) log p; advantages: (B, C). A token that is certain already (p = 1) is not moved.
    """
    return (advantages.abs() * -logps.detach().expm1()).masked_fill(mask == 0, 0)


def describe_context(logps: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """What the loss under one context pulls at.

    pull_good  mean of `pull` over tokens with A > 0; pull_bad: with A < 0
    improbable share of the pull on tokens with A < 0 that is on tokens with p < IMPROBABLE
    NaN where there are no such tokens, or no such pull.
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
    """Mean of d_t = log p(y_t|x,h) - log p(y_t|x) over tokens with A > 0 (shift_good) and with A < 0 (shift_bad)."""
    shift, on = (under_h - under_x).detach(), mask != 0
    return {
        "shift_good": _mean(shift, on & (advantages > 0)),
        "shift_bad": _mean(shift, on & (advantages < 0)),
    }


def _mean(values: Tensor, chosen: Tensor) -> float:
    return _ratio(values.masked_fill(~chosen, 0).sum(), chosen.sum())


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else torch.nan
