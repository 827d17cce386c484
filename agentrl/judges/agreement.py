"""Measure how far two judges agree: in rank (pairwise concordance) and in level (mean absolute error).

All functions are pure functions of scores. Both measures matter: a policy is trained on ranks within a prompt and held
to a level (tau).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agentrl.core.stats import ROUNDING, Interval

Scores = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Concordance:
    """The pairs that the first judge tells apart, and how many of them the second judge orders the same way.

    A tie of the second judge counts half.
    """

    agree: float
    pairs: int

    @property
    def share(self) -> float:
        """Share of pairs ordered alike, in [0, 1]: 1 is the same order, 0.5 is chance; NaN without a pair."""
        return self.agree / self.pairs if self.pairs else math.nan

    def __add__(self, other: Concordance) -> Concordance:
        return Concordance(self.agree + other.agree, self.pairs + other.pairs)


def concordance(first: Scores, second: Scores) -> Concordance:
    """Compare `second` (N,) with the primary judge's scores `first` (N,) over all pairs of responses.

    HIPO compares judges in this way: which of two responses is better.

    Raises:
        ValueError: the lengths differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} scores")
    agree, pairs = 0.0, 0
    lower = np.empty(0)  # the second judge's scores of all responses that the first judge puts lower, ascending
    for level in np.unique(first):
        here = second[first == level]
        below, up_to = np.searchsorted(lower, here, "left"), np.searchsorted(lower, here, "right")
        agree += float((below + up_to).sum()) / 2
        pairs += len(here) * len(lower)
        lower = np.sort(np.concatenate([lower, here]))
    return Concordance(agree, pairs)


def mean_absolute_error(first: Scores, second: Scores) -> float:
    """Return the mean of |first - second|."""
    return float(np.abs(first - second).mean())


def spearman(first: Scores, second: Scores) -> float:
    """Return the rank correlation. Ties share their rank; NaN if one side is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def agreement(
    first: Sequence[float], second: Sequence[float], prompts: Sequence[Hashable], seed: int = 0, draws: int = 500
) -> dict[str, Interval]:
    """Return all measures of two judges' scores of the same responses; `first` is the primary judge.

    n counts responses. `concordance` covers all pairs, `concordance_within` the pairs of one prompt (what group-wise
    training sees). The others are `mae`, `spearman`, and `shift`, the mean of second - first. The 95% intervals are
    percentile bootstraps that draw whole prompts with replacement.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(index)
    groups = [np.array(group, dtype=np.intp) for group in members.values()]
    within = [concordance(a[group], b[group]) for group in groups]

    def of_items(measure: Callable[[Scores, Scores], float]) -> Callable[[Indices], float]:
        def of_groups(drawn: Indices) -> float:
            at = np.concatenate([groups[g] for g in drawn])
            return measure(a[at], b[at])

        return of_groups

    measures: dict[str, Callable[[Indices], float]] = {
        "concordance": of_items(lambda x, y: concordance(x, y).share),
        "concordance_within": lambda drawn: sum((within[g] for g in drawn), Concordance(0, 0)).share,
        "mae": of_items(mean_absolute_error),
        "spearman": of_items(spearman),
        "shift": of_items(lambda x, y: float((y - x).mean())),
    }
    return {name: _bootstrap(measure, len(groups), len(a), seed, draws) for name, measure in measures.items()}


def _bootstrap(measure: Callable[[Indices], float], groups: int, n: int, seed: int, draws: int) -> Interval:
    """Return `measure` of all groups, with bounds from drawing groups. Draws without a value (NaN) are left out.

    If all draws give the same value, they say nothing about other prompts, so there are no bounds.
    """
    value = measure(np.arange(groups, dtype=np.intp)) if groups else math.nan
    if groups < 2:
        return Interval(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    drawn = [measure(rng.integers(groups, size=groups)) for _ in range(draws)]
    known = [value for value in drawn if not math.isnan(value)]
    lo, hi = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    if hi - lo <= ROUNDING:
        lo = hi = math.nan
    return Interval(value, float(lo), float(hi), n)
