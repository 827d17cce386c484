"""Means with honest intervals: items that share a cluster are not independent, and before/after share items.

All intervals are two-sided. Where too few clusters are there for an honest one, its bounds are NaN. The standard error
of a mean is the jackknife's that leaves one cluster out at a time, and its degrees of freedom are one less than the
effective number of clusters, (sum_g n_g)^2 / sum_g n_g^2: clusters of unequal sizes say less than as many equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from agentrl.core.interval import Interval

FEWEST = 2.0  # effective clusters below which a t-interval is not given
FEWEST_OF_SHARES = 3.0  # and below which that of a share would hardly leave anything out
ROUNDING = 1e-9  # standard errors below this are those of equal values


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """`share_interval` where all values lie in [0, 1], as shares and scores do, else `t_interval`.

    Not for differences, which may all lie there by chance: see `paired_difference`.
    Raises ValueError unless 0 < level < 1, the values are finite and there is one cluster per value.
    """
    return (share_interval if are_shares(values) else t_interval)(values, clusters, level)


def are_shares(values: Sequence[float]) -> bool:
    """Whether all values lie in [0, 1]."""
    return all(0 <= value <= 1 for value in values)


def t_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Mean with Student's t-interval (every value its own cluster if none are given), for values without a range.

    Singletons give the ordinary t-interval. If all values are equal the width is 0, which overstates certainty.
    Raises ValueError as `mean_interval`.
    """
    sample = _Sample.of(values, clusters, level)
    if not sample.effective >= FEWEST:
        return Interval(sample.mean, math.nan, math.nan, sample.n)
    half = sample.quantile(level) * sample.error
    return Interval(sample.mean, sample.mean - half, sample.mean + half, sample.n)


def seeds_interval(means: Sequence[float], low: float = 0.0, high: float = 1.0, level: float = 0.95) -> Interval:
    """Student's t over the means of several runs, cut to [low, high] where all of them lie there."""
    found = t_interval(means, level=level)
    if not found.known or not all(low <= mean <= high for mean in means):
        return found
    return Interval(found.mean, max(found.lo, low), min(found.hi, high), found.n)


def share_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Mean p of values whose mean lies in [0, 1], with Wilson's interval on the effective sample size; it stays there.

    The effective size m = p (1 - p) / se^2 is the number of independent passes and failures that would know p as well.
    se^2 is averaged with p (1 - p) / n, which counts as one cluster: few values that happen to be close together do not
    show that all are. Where all values are 0 or all are 1, m is the effective number of clusters; where they are 0 and
    1, it is the number of values at most. Raises ValueError as `mean_interval`.
    """
    return _share(_Sample.of(values, clusters, level), level)


def paired_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    level: float = 0.95,
    shares: bool | None = None,
) -> Interval:
    """Mean of after - before over the items that both have.

    `shares` says whether both means lie in [0, 1], as they do where all values do (the default): the interval then
    stays in [-1, 1]. It is made of those of the mean gain and the mean loss (MOVER; Zou and Donner 2008), so that
    equal items give it a width. Else it is the t-interval of the differences.
    Raises ValueError if a common item has no cluster, and as `mean_interval`.
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
    # Linearised values: those of an item mean nothing by themselves, so the difference is that of a share to its half.
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
    """Mean of `up` minus mean of `down`, from their intervals (method of variance estimates recovery)."""
    one, other = _share(up, level), _share(down, level)
    lower, upper = one.mean - one.lo, one.hi - one.mean
    less, more = other.mean - other.lo, other.hi - other.mean
    mean = one.mean - other.mean
    below = math.sqrt(max(lower**2 - 2 * correlation * lower * more + more**2, 0.0))
    above = math.sqrt(max(upper**2 - 2 * correlation * upper * less + less**2, 0.0))
    return Interval(mean, mean - below, mean + above, one.n)


@dataclass(frozen=True)
class _Sample:
    """What intervals are made of: a mean, how it moves as clusters are left out, and how much that says."""

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
        """Of the two means; 0 where one of them does not move."""
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
