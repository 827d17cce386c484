"""Means with confidence intervals that respect clusters (items that are not independent) and pairs (before and after).

All intervals are two-sided. The bounds are NaN if there are too few clusters. The standard error of a mean is that of
the jackknife, which leaves out one cluster at a time. Its degrees of freedom are one less than the effective number of
clusters, (sum_g n_g)^2 / sum_g n_g^2: clusters of unequal sizes tell less than the same number of equal clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from agentrl.core.interval import Interval

FEWEST = 2.0  # a t-interval needs this many effective clusters
FEWEST_OF_SHARES = 3.0  # the interval of a share needs this many; with fewer it would cover almost all of [0, 1]
ROUNDING = 1e-9  # a smaller standard error means that all values are equal


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """`share_interval` if all values lie in [0, 1], as shares and scores do; otherwise `t_interval`.

    Use `paired_difference` for differences: they may all lie in [0, 1] by chance.
    Raises ValueError unless 0 < level < 1, the values are finite and there is one cluster per value.
    """
    return (share_interval if are_shares(values) else t_interval)(values, clusters, level)


def are_shares(values: Sequence[float]) -> bool:
    """Whether all values lie in [0, 1]."""
    return all(0 <= value <= 1 for value in values)


def t_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Mean with Student's t-interval, for values without a fixed range. Without `clusters`, each value is a cluster.

    Clusters of one value give the ordinary t-interval. If all values are equal, the width is 0: too certain.
    Raises ValueError as `mean_interval`.
    """
    sample = _Sample.of(values, clusters, level)
    if not sample.effective >= FEWEST:
        return Interval(sample.mean, math.nan, math.nan, sample.n)
    half = sample.quantile(level) * sample.error
    return Interval(sample.mean, sample.mean - half, sample.mean + half, sample.n)


def seeds_interval(means: Sequence[float], low: float = 0.0, high: float = 1.0, level: float = 0.95) -> Interval:
    """Student's t-interval over the means of several runs, cut to [low, high] if all means lie there."""
    found = t_interval(means, level=level)
    if not found.known or not all(low <= mean <= high for mean in means):
        return found
    return Interval(found.mean, max(found.lo, low), min(found.hi, high), found.n)


def share_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Mean p of values in [0, 1], with Wilson's interval on the effective sample size. The interval stays in [0, 1].

    The effective size m = p (1 - p) / se^2 is the number of independent passes and failures that give the same standard
    error. se^2 is averaged with p (1 - p) / n, which counts as one cluster, because a few values can lie close together
    by chance. If all values are 0 or all are 1, m is the effective number of clusters. If the values are only 0 and 1,
    m is at most the number of values. Raises ValueError as `mean_interval` does.
    """
    return _share(_Sample.of(values, clusters, level), level)


def paired_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    level: float = 0.95,
    shares: bool | None = None,
) -> Interval:
    """Mean of after - before over the items that are in both.

    `shares` says whether both means lie in [0, 1]; by default they do if all values do. The interval then stays in
    [-1, 1]. It combines the intervals of the mean gain and the mean loss (MOVER; Zou and Donner 2008), so it has a
    width even if no item changed. Without shares it is the t-interval of the differences.
    Raises ValueError if a common item has no cluster, and as `mean_interval` does.
    """
    common = sorted(before.keys() & after.keys())
    if clusters is not None and (missing := [item for item in common if item not in clusters]):
        raise ValueError(f"items without a cluster: {', '.join(missing[:5])}")
    labels = None if clusters is None else [clusters[item] for item in common]
    first, second = [before[item] for item in common], [after[item] for item in common]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    plain = are_shares(first) and are_shares(second)
    if not (plain if shares is None else shares):
        return t_interval(differences, labels, level)
    if plain:
        gains = _Sample.of([max(value, 0.0) for value in differences], labels, level)
        losses = _Sample.of([max(-value, 0.0) for value in differences], labels, level)
        return _mover(gains, losses, gains.correlation(losses), level)
    # Linearised values: a single value has no meaning, so map the difference d to the share (1 + d) / 2.
    half = _Sample.of([(1 + value) / 2 for value in differences], labels, level)
    if half.error <= ROUNDING:
        return _mover(_Sample.of(second, labels, level), _Sample.of(first, labels, level), 0.0, level)
    found = _share(half, level)
    return Interval(2 * half.mean - 1, 2 * found.lo - 1, 2 * found.hi - 1, half.n)


def _share(sample: _Sample, level: float) -> Interval:
    if not sample.effective >= FEWEST_OF_SHARES:
        return Interval(sample.mean, math.nan, math.nan, sample.n)
    mean, spread = min(max(sample.mean, 0.0), 1.0), sample.mean * (1 - sample.mean)
    variance = ((sample.effective - 1) * sample.error**2 + spread / sample.n) / sample.effective
    size = spread / variance if spread > ROUNDING else sample.effective
    if sample.binary:
        size = min(size, sample.n)
    reach = sample.quantile(level) ** 2 / size
    centre = (mean + reach / 2) / (1 + reach)
    half = math.sqrt(reach * max(spread, 0.0) + reach**2 / 4) / (1 + reach)
    return Interval(sample.mean, max(centre - half, 0.0), min(centre + half, 1.0), sample.n)


def _mover(up: _Sample, down: _Sample, correlation: float, level: float) -> Interval:
    """Mean of `up` minus mean of `down`, with the interval made from theirs (method of variance estimates recovery)."""
    one, other = _share(up, level), _share(down, level)
    lower, upper = one.mean - one.lo, one.hi - one.mean
    less, more = other.mean - other.lo, other.hi - other.mean
    mean = one.mean - other.mean
    below = math.sqrt(max(lower**2 - 2 * correlation * lower * more + more**2, 0.0))
    above = math.sqrt(max(upper**2 - 2 * correlation * upper * less + less**2, 0.0))
    return Interval(mean, mean - below, mean + above, one.n)


@dataclass(frozen=True)
class _Sample:
    """What an interval is computed from: the mean, its change as each cluster is left out, and the sizes."""

    mean: float
    moves: np.ndarray  # (G,) mean without cluster g minus the mean
    effective: float  # number of clusters, as if they were equal in size
    n: int
    binary: bool

    @classmethod
    def of(cls, values: Sequence[float], clusters: Sequence[Hashable] | None, level: float) -> _Sample:
        sums, counts, mean = _by_cluster(values, clusters, level)
        n, groups = len(values), len(sums)
        effective = n**2 / float(np.square(counts).sum()) if n else 0.0
        moves = (sums.sum() - sums) / (n - counts) - mean if groups > 1 else np.zeros(0)
        return cls(mean, moves, effective, n, all(value in (0, 1) for value in values))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        groups = len(self.moves)
        return math.sqrt((groups - 1) / groups * float(np.square(self.moves).sum())) if groups else math.nan

    def quantile(self, level: float) -> float:
        return float(stdtrit(self.effective - 1, (1 + level) / 2))

    def correlation(self, other: _Sample) -> float:
        """Correlation of the two means; 0 if one of them never changes."""
        scale = math.sqrt(float(np.square(self.moves).sum() * np.square(other.moves).sum()))
        return float((self.moves * other.moves).sum()) / scale if scale > 0 else 0.0


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean with a percentile interval from resampling whole clusters with replacement; deterministic given `seed`.

    Use it for skewed values, where a symmetric t-interval misleads. Below about 10 clusters it is too narrow, as every
    percentile bootstrap is: prefer `mean_interval`. With one cluster the bounds are NaN. Raises ValueError as
    `mean_interval` does, and unless draws > 0.
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
    """pass@k: estimate the probability that at least one of k attempts passes, from c passes in n attempts.

    The estimate is 1 - C(n-c, k) / C(n, k), which is unbiased.
    Raises ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Chen et al., arXiv 2107.03374.
    """
    _check_attempts(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k: estimate the probability that all of k attempts pass, from c passes in n attempts.

    The estimate is C(c, k) / C(n, k), which is unbiased. Raises ValueError as `pass_at_k` does. Source: tau-bench,
    arXiv 2406.12045.
    """
    _check_attempts(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def _check_attempts(n: int, c: int, k: int) -> None:
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"c={c} passes in n={n} attempts with k={k}: 1 <= k <= n and 0 <= c <= n must hold")


def linearised_ratio(numerators: Mapping[str, float], denominators: Mapping[str, float]) -> dict[str, float]:
    """Return R + (a - R b) / mean(b) for each item, with R = sum(a) / sum(b). The mean of these values is R.

    Their `mean_interval` is the delta-method interval of the ratio. Their `paired_difference` is the interval of a
    difference of two ratios. If the denominators sum to 0, every item gets 0.
    """
    total = sum(denominators.values())
    if not total:
        return dict.fromkeys(numerators, 0.0)
    ratio, mean = sum(numerators.values()) / total, total / len(denominators)
    return {item: ratio + (a - ratio * denominators[item]) / mean for item, a in numerators.items()}


def linearised_macro(values: Mapping[str, float], suites: Mapping[str, Hashable]) -> dict[str, float]:
    """Return M + (x - m_s) N / (S n_s) for each item; M is the plain mean of the means m_s of S suites.

    n_s is the number of items of a suite, and N their sum. The mean of these values is M. Their `mean_interval` takes
    the suites as fixed and the items as drawn within each suite. Raises KeyError for an item without a suite.
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
    """Return the sum and the count of the values in each cluster, and the mean of all values."""
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
