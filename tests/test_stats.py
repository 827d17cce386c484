"""Intervals: textbook values by hand, reductions, and coverage by simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from agentrl.report.arms import Arm, RunRecord, pooled
from agentrl.stats import (
    Interval,
    bootstrap_interval,
    linearised_macro,
    linearised_ratio,
    mean_interval,
    paired_difference,
    pass_at_k,
    pass_hat_k,
)


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
    before = {"a": 0.0, "b": 0.0, "c": 1.0, "gone": 9.0}
    after = {"c": 1.0, "b": 1.0, "a": 0.5, "new": 9.0}
    out = paired_difference(before, after)
    # differences 0.5, 1, 0: mean 0.5, s = 0.5, half-width 2.48414 / 2
    assert (out.mean, out.n) == (0.5, 3)
    assert out.hi == pytest.approx(0.5 + 1.24207, abs=1e-4)
    clustered = paired_difference(before, after, {"a": 1, "b": 2, "c": 2})
    # sums of deviations: 0 and 0.5 - 0.5 = 0
    assert clustered.hi == clustered.mean == 0.5
    with pytest.raises(ValueError, match="without a cluster: c"):
        paired_difference(before, after, {"a": 1, "b": 2})


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
            out = pooled(Arm((), "", [RunRecord(Path(), {}, {}, cell) for cell in cells]), "after", "solved")
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
