"""Means with honest intervals: items that share a cluster are not independent, and before/after share items.

All intervals are two-sided. An interval that cannot be known (no value, or a single cluster) has NaN bounds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence bounds (NaN where unknown) and the number of values behind it."""

    mean: float
    lo: float
    hi: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The form of summary.json, with null for what is unknown, since JSON has no NaN."""
        known = {name: None if math.isnan(value) else value for name, value in vars(self).items()}
        return {"mean": known["mean"], "lo": known["lo"], "hi": known["hi"], "n": self.n}


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Mean with a t-interval from the cluster-robust standard error (every value its own cluster if none are given).

    With deviations d_i from the overall mean and G clusters: se = sqrt(G / (G - 1) * sum_g (sum_{i in g} d_i)^2) / n,
    compared with Student's t of G - 1 degrees of freedom. Singletons give the ordinary t-interval.

    Below about 10 clusters treat the interval as rough: t widens it, but the standard error itself is then noisy, and
    too small if clusters differ much in size. One cluster says nothing about others: the bounds are NaN.
    If all values are equal the width is 0, which overstates certainty (0 of 20 solved does not prove "never").
    Raises ValueError unless 0 < level < 1, the values are finite and there is one cluster per value.
    """
    sums, counts, mean = _by_cluster(values, clusters, level)
    n, groups = len(values), len(sums)
    if groups < 2:
        return Interval(mean, math.nan, math.nan, n)
    error = math.sqrt(groups / (groups - 1) * float(np.square(sums - counts * mean).sum())) / n
    half = float(stdtrit(groups - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    level: float = 0.95,
) -> Interval:
    """Mean of after - before over the items that both have, as `mean_interval` of the per-item differences.

    Raises ValueError if a common item has no cluster.
    """
    common = sorted(before.keys() & after.keys())
    if clusters is not None and (missing := [item for item in common if item not in clusters]):
        raise ValueError(f"items without a cluster: {', '.join(missing[:5])}")
    labels = None if clusters is None else [clusters[item] for item in common]
    return mean_interval([after[item] - before[item] for item in common], labels, level)


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean with a percentile interval from resampling whole clusters with replacement; deterministic given `seed`.

    For skewed values where a symmetric t-interval misleads. Below about 10 clusters it is too narrow, as every
    percentile bootstrap is: prefer `mean_interval`. One cluster: NaN bounds. Raises ValueError as `mean_interval`,
    and unless draws > 0.
    """
    if draws <= 0:
        raise ValueError(f"draws {draws} must be above 0")
    sums, counts, mean = _by_cluster(values, clusters, level)
    groups = len(sums)
    if groups < 2:
        return Interval(mean, math.nan, math.nan, len(values))
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 1000):  # in blocks, so that memory stays small with many clusters
        picked = rng.integers(groups, size=(min(1000, draws - start), groups))
        means[start : start + len(picked)] = sums[picked].sum(1) / counts[picked].sum(1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(lo), float(hi), len(values))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate that at least one of k attempts passes, from c passes in n attempts: 1 - C(n-c, k) / C(n, k).

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Chen et al., arXiv 2107.03374.
    """
    _check_attempts(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k: unbiased estimate that all of k attempts pass, C(c, k) / C(n, k). Source: tau-bench, arXiv 2406.12045.

    Raises ValueError as `pass_at_k`.
    """
    _check_attempts(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def _check_attempts(n: int, c: int, k: int) -> None:
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"{c} passes in {n} attempts say nothing about k = {k}: 1 <= k <= n and 0 <= c <= n must hold")


def linearised_ratio(numerators: Mapping[str, float], denominators: Mapping[str, float]) -> dict[str, float]:
    """Per item R + (a - R b) / mean(b) with R = sum(a) / sum(b): values whose mean is R.

    Their `mean_interval` is the delta-method interval of the ratio, and `paired_difference` that of a difference of
    two ratios. 0 for every item where the denominators sum to 0.
    """
    total = sum(denominators.values())
    if not total:
        return dict.fromkeys(numerators, 0.0)
    ratio, mean = sum(numerators.values()) / total, total / len(denominators)
    return {item: ratio + (a - ratio * denominators[item]) / mean for item, a in numerators.items()}


def linearised_macro(values: Mapping[str, float], suites: Mapping[str, Hashable]) -> dict[str, float]:
    """Per item M + (x - m_s) N / (S n_s), with M the plain mean of the S suites' means m_s: values whose mean is M.

    Their `mean_interval` takes the suites as given and items as drawn within each. Raises KeyError for an item without
    a suite.
    """
    members: dict[Hashable, list[float]] = {}
    for item, value in values.items():
        members.setdefault(suites[item], []).append(value)
    means = {suite: sum(group) / len(group) for suite, group in members.items()}
    macro = sum(means.values()) / len(means) if means else math.nan
    weights = {suite: len(values) / (len(members) * len(group)) for suite, group in members.items()}
    return {item: macro + (x - means[suites[item]]) * weights[suites[item]] for item, x in values.items()}


def _by_cluster(
    values: Sequence[float], clusters: Sequence[Hashable] | None, level: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sum and count of the values in each cluster, and the mean of all."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("values must be finite: leave out what was not measured")
    labels: Sequence[Hashable] = range(len(x)) if clusters is None else clusters
    if len(labels) != len(x):
        raise ValueError(f"{len(labels)} clusters for {len(x)} values")
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.intp)
    counts = np.bincount(index, minlength=len(codes)).astype(np.float64)
    sums = np.bincount(index, weights=x, minlength=len(codes))
    return sums, counts, float(x.mean()) if len(x) else math.nan
