"""Intervals: textbook values by hand, reductions, and coverage by simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from agentrl.core.stats import (
    Interval,
    bootstrap_interval,
    linearised_macro,
    linearised_ratio,
    mean_interval,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    seeds_interval,
    share_interval,
)
from agentrl.report.arms import Arm, RunRecord, pool_metric


def test_unclustered_interval_is_the_textbook_one() -> None:
    out = mean_interval([1.0, 2.0, 3.0])
    # s = 1, se = 1 / sqrt 3 = 0.57735, t(0.975; 2) = 4.30265: half-width 2.48414
    assert (out.mean, out.n) == (2.0, 3)
    assert out.hi - out.mean == pytest.approx(2.48414, abs=1e-4)
    assert out.mean - out.lo == pytest.approx(2.48414, abs=1e-4)


def test_clustered_interval_by_hand() -> None:
    out = mean_interval([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], ["a", "a", "b", "b", "c", "c"])
    # mean 1, cluster sums of deviations -2, 0, 2; se = sqrt(3/2 * 8) / 6 = 0.57735: as if there were 3 values
    assert out.hi - out.mean == pytest.approx(2.48414, abs=1e-4)
    assert out.n == 6


def test_what_cannot_be_known_is_nan() -> None:
    for out in (mean_interval([1.0]), mean_interval([1.0, 3.0], ["a", "a"]), bootstrap_interval([1.0, 3.0], [0, 0])):
        assert math.isnan(out.lo) and math.isnan(out.hi) and not math.isnan(out.mean)
    empty = mean_interval([])
    assert math.isnan(empty.mean) and empty.n == 0
    assert json.loads(json.dumps(empty.as_dict(), allow_nan=False)) == {"mean": None, "lo": None, "hi": None, "n": 0}
    assert Interval(1.0, 0.5, 1.5, 9).as_dict() == {"mean": 1.0, "lo": 0.5, "hi": 1.5, "n": 9}


def test_paired_difference_uses_common_items() -> None:
    before = {"a": 10.0, "b": 10.0, "c": 11.0, "gone": 19.0}
    after = {"c": 11.0, "b": 11.0, "a": 10.5, "new": 19.0}
    out = paired_difference(before, after)
    # differences 0.5, 1, 0: mean 0.5, s = 0.5, half-width 2.48414 / 2
    assert (out.mean, out.n) == (0.5, 3)
    assert out.hi == pytest.approx(0.5 + 1.24207, abs=1e-4)
    with pytest.raises(ValueError, match="without a cluster: c"):
        paired_difference(before, after, {"a": 1, "b": 2})


def test_wilson_by_hand() -> None:
    # 0 of 20: t(0.975; 19) = 2.09302, t^2 = 4.38075; upper bound t^2 / (20 + t^2)
    assert vars(share_interval([0.0] * 20)) == pytest.approx({"mean": 0, "lo": 0, "hi": 4.38075 / 24.38075, "n": 20})
    assert vars(share_interval([1.0] * 20)) == pytest.approx({"mean": 1, "lo": 20 / 24.38075, "hi": 1, "n": 20})
    # In 4 clusters of 5 that agree within, they are 4 values: t(0.975; 3)^2 = 3.18245^2 = 10.12797
    labels = [i // 5 for i in range(20)]
    assert share_interval([0.0] * 20, labels).hi == pytest.approx(10.12797 / 14.12797, abs=1e-5)
    # 3 of 10: p = .3, se^2 = .21/9; averaged with .21/10 as one of 10: m = .21 / ((9 * .21/9 + .021) / 10) = 1 / .11,
    # t(0.975; 9)^2 = 5.11731, a = t^2 / m = .562904: (p + a/2 -+ sqrt(a p (1 - p) + a^2/4)) / (1 + a)
    three = share_interval([1.0] * 3 + [0.0] * 7)
    root = math.sqrt(0.562904 * 0.21 + 0.562904**2 / 4)
    assert (three.lo, three.hi) == pytest.approx(((0.581452 - root) / 1.562904, (0.581452 + root) / 1.562904), abs=1e-5)


def test_few_unequal_clusters_give_no_interval() -> None:
    for sizes in ([20], [10, 10], [1, 2, 4, 8, 25]):
        labels = np.repeat(range(len(sizes)), sizes).tolist()
        out = share_interval([float(i % 2) for i in range(len(labels))], labels)
        assert math.isnan(out.lo) and not out.known
    assert share_interval([0.0, 1.0, 1.0]).known and not share_interval([0.0, 1.0]).known


def test_differences_of_shares_stay_in_range_and_are_never_certain() -> None:
    ids = [str(i) for i in range(20)]
    zero, one = dict.fromkeys(ids, 0.0), dict.fromkeys(ids, 1.0)
    upper = 4.38075 / 24.38075  # of 0 gains in 20, and of 0 losses
    same = paired_difference(zero, zero)
    assert (same.lo, same.mean, same.hi) == pytest.approx((-upper, 0, upper))
    # 20 gains of 20, [1 - upper, 1], and no loss, [0, upper]
    all_gained = paired_difference(zero, one)
    assert (all_gained.mean, all_gained.hi) == (1, 1)
    assert all_gained.lo == pytest.approx(1 - math.sqrt(2) * upper)
    # Linearised values, whose means alone are shares.
    far = dict(zip(ids, np.linspace(-3, 4, 20).tolist(), strict=True))
    near = {name: 0.9 - value / 10 for name, value in far.items()}
    linear = paired_difference(far, near, shares=True)
    assert linear.mean == pytest.approx(0.35) and -1 <= linear.lo < 0.35 < linear.hi <= 1


def test_seeds_have_students_interval_cut_to_the_range() -> None:
    out = seeds_interval([0.9, 1.0, 1.0])
    assert (out.lo, out.hi) == pytest.approx((0.966667 - 4.302653 * 0.0577350 / math.sqrt(3), 1.0), abs=1e-5)
    assert seeds_interval([0.9, 1.0, 2.0]).hi > 2 and seeds_interval([0.1, 0.0, 0.2], low=-1).lo < 0


def test_order_and_labels_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=40), rng.integers(8, size=40)
    order = rng.permutation(40)
    a = mean_interval(values.tolist(), clusters.tolist())
    b = mean_interval(values[order].tolist(), [f"c{i}" for i in clusters[order]])
    assert vars(a) == pytest.approx(vars(b))


def test_bootstrap_is_seeded_and_close_to_the_t_interval() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=400).tolist(), (np.arange(400) // 4).tolist()
    a = bootstrap_interval(values, clusters, seed=1, draws=4000)
    assert a == bootstrap_interval(values, clusters, seed=1, draws=4000)
    assert a != bootstrap_interval(values, clusters, seed=2, draws=4000)
    t = mean_interval(values, clusters)
    assert a.lo == pytest.approx(t.lo, abs=0.01) and a.hi == pytest.approx(t.hi, abs=0.01)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])
    with pytest.raises(ValueError, match="2 clusters for 3"):
        mean_interval([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="draws"):
        bootstrap_interval([1.0, 2.0], draws=0)


def coverage(kind: str, trials: int) -> float:
    """Share of nominal 95% intervals that contain the truth, over simulated evaluations.

    Items pass or fail; a cluster (1 to 8 items) or a seed has a pass rate of its own, Beta(2, 3): the true mean is 0.4.
    """
    rng, hits = np.random.default_rng(123), 0
    for trial in range(trials):
        if kind == "seeds":  # five runs on the same 100 items
            rates = rng.beta(2, 3, size=5)
            means = (rng.binomial(100, rates) / 100).tolist()
            cells = [{"eval": {"after": {"solved": {"mean": mean, "n": 100}}}} for mean in means]
            out = pool_metric(Arm((), "", [RunRecord(Path(), {}, {}, cell) for cell in cells]), "after", "solved")
        else:
            count = 80 if kind == "bootstrap" else 40
            clusters = np.repeat(np.arange(count), rng.integers(1, 9, size=count))
            values = (rng.random(len(clusters)) < rng.beta(2, 3, size=count)[clusters]).astype(float).tolist()
            match kind:
                case "bootstrap":
                    out = bootstrap_interval(values, clusters.tolist(), seed=trial, draws=500)
                case "ignored":
                    out = mean_interval(values)
                case "t":
                    out = mean_interval(values, clusters.tolist())
        assert out is not None
        hits += out.lo <= 0.4 <= out.hi
    return hits / trials


@pytest.mark.parametrize("kind", ["t", "bootstrap", "seeds"])
def test_intervals_cover_the_truth(kind: str) -> None:
    # the share has a standard deviation of 0.005 over 2000 trials, of 0.007 over the bootstrap's 1000
    assert 0.93 <= coverage(kind, 1000 if kind == "bootstrap" else 2000) <= 0.97


def test_ignoring_clusters_would_not_cover() -> None:
    assert coverage("ignored", 500) < 0.91  # so the simulation can tell the two apart


SETTINGS = {
    "5 items": [1] * 5,
    "20 items": [1] * 20,
    "200 items": [1] * 200,
    "50 clusters of 4": [4] * 50,
    "40 clusters of 1 to 8": [1 + i % 8 for i in range(40)],
    "12 clusters of 2 to 24": list(range(2, 26, 2)),
    "20 clusters of 1 to 40": [1] * 8 + [2] * 5 + [5] * 3 + [10] * 2 + [20, 40],
    "8 clusters of 1 to 30": [1, 2, 2, 3, 4, 6, 12, 30],
    "3 clusters of 10": [10] * 3,
}


def share_coverage(kind: str, sizes: list[int], truth: float, alike: float, trials: int) -> float:
    """How often the interval of a share, a score or a difference contains the truth.

    Every cluster has a pass rate of its own, Beta with mean `truth` and an intra-cluster correlation of `alike`. A
    score is Beta around the rate (as F1 is); for a difference each item is played again with probability 1/5, at a rate
    of 0.2 more.
    """
    rng, hits = np.random.default_rng(7), 0
    labels = np.repeat(np.arange(len(sizes)), sizes)
    weight = 1 / alike - 1 if alike else 0.0
    for _ in range(trials):
        drawn = rng.beta(truth * weight, (1 - truth) * weight, len(sizes)) if alike else np.full(len(sizes), truth)
        rates = np.clip(drawn, 1e-3, 1 - 1e-3)[labels]
        first = (rng.random(len(labels)) < rates).astype(float)
        if kind == "difference":
            again = np.where(rng.random(len(labels)) < 0.2, rng.random(len(labels)) < truth + 0.2, first).astype(float)
            both = ({str(i): float(x) for i, x in enumerate(side)} for side in (first, again))
            out, wanted = paired_difference(*both, {str(i): label for i, label in enumerate(labels)}), 0.2 * 0.2
        else:
            values = rng.beta(2 * rates, 2 * (1 - rates)) if kind == "score" else first
            out, wanted = share_interval(values.tolist(), labels.tolist()), truth
        assert (-1 if kind == "difference" else 0) <= out.lo <= out.hi <= 1
        hits += out.lo - 1e-12 <= wanted <= out.hi + 1e-12
    return hits / trials


# With a few clusters that say much alike, a rare pass may not have been met in any: docs/evaluation.md says so.
RARE = {("share", "12 clusters of 2 to 24"): 0.88, ("score", "12 clusters of 2 to 24"): 0.79}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "score", "difference"])
@pytest.mark.parametrize("name", SETTINGS)
def test_intervals_of_shares_cover_the_truth(kind: str, name: str) -> None:
    sizes = SETTINGS[name]
    for alike in (0.0, 0.3) if max(sizes) > 1 else (0.0,):
        assert share_coverage(kind, sizes, 0.3, alike, 1000) >= 0.925, alike
        assert share_coverage(kind, sizes, 0.05, alike, 1000) >= RARE.get((kind, name), 0.88), alike


def test_pass_at_k_and_pass_hat_k_by_hand() -> None:
    # 4 attempts, 2 passes, k = 2: of the 6 pairs, 1 has no pass and 1 has two
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6) and pass_hat_k(4, 2, 2) == pytest.approx(1 / 6)
    assert pass_at_k(4, 2, 1) == pass_hat_k(4, 2, 1) == 0.5
    assert pass_at_k(3, 3, 3) == pass_hat_k(3, 3, 3) == 1 and pass_at_k(3, 0, 3) == pass_hat_k(3, 2, 3) == 0
    for bad in ((3, 1, 4), (3, 1, 0), (3, 4, 1)):
        with pytest.raises(ValueError, match="1 <= k <= n"):
            pass_at_k(*bad)


def test_pass_at_k_is_unbiased() -> None:
    # sum over c of Binomial(c; n, p) * estimate must be the truth: 1 - (1 - p)^k and p^k
    n, p = 5, 0.3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in range(1, n + 1):
        assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(1 - (1 - p) ** k)
        assert sum(w * pass_hat_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(p**k)


def test_a_linearised_macro_average_weighs_suites_alike() -> None:
    values = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0}
    macro = linearised_macro(values, {"a": "x", "b": "x", "c": "x", "d": "x", "e": "y"})
    # x: 1/4, y: 1/1, their mean 5/8; in x an item weighs 5 / (2 * 4), so a is 5/8 + 3/4 * 5/8.
    assert sum(macro.values()) / 5 == pytest.approx(5 / 8)
    assert macro["a"] == pytest.approx(5 / 8 + 3 / 4 * 5 / 8) and macro["e"] == pytest.approx(5 / 8)
    one = linearised_macro(values, dict.fromkeys(values, "x"))
    assert one == pytest.approx(values)


def test_a_linearised_ratio_has_the_ratio_as_mean() -> None:
    values = linearised_ratio({"a": 1.0, "b": 0.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 4.0})
    # R = 4/8, mean denominator 8/3: a: 1/2 + (1 - 1/2) * 3/8 = 11/16
    assert values["a"] == pytest.approx(11 / 16)
    assert sum(values.values()) / 3 == pytest.approx(0.5)
    # equal denominators: the plain values
    assert linearised_ratio({"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 2.0}) == pytest.approx({"a": 0.5, "b": 0.0})
    assert linearised_ratio({"a": 0.0}, {"a": 0.0}) == {"a": 0.0}
