"""Agreement of two judges against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agentrl.judges.agreement import agreement, concordance, mean_absolute_error, spearman


def array(*values: float) -> np.ndarray:
    return np.array(values)


def test_concordance_by_hand() -> None:
    # The first orders 1<2, 1<3, 1<4, 2<3 is a tie, 2<4, 3<4: five pairs. The second agrees on 1<2, 1<4 and 3<4, ties
    # 2 and 4 (half), and reverses 1 and 3.
    found = concordance(array(0.2, 0.5, 0.5, 1.0), array(0.3, 0.9, 0.1, 0.9))
    assert (found.pairs, found.agree) == (5, 3.5)
    assert found.share == 0.7
    assert concordance(array(0, 1, 2), array(2, 1, 0)).share == 0
    assert concordance(array(0, 1, 2), array(5, 5, 5)).share == 0.5
    assert math.isnan(concordance(array(1, 1), array(0, 1)).share)  # the first tells nothing apart


def test_concordance_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=40) / 4, rng.integers(4, size=40) / 3
    pairs = [(i, j) for i in range(40) for j in range(40) if a[i] < a[j]]
    agree = sum(1.0 if b[i] < b[j] else 0.5 if b[i] == b[j] else 0.0 for i, j in pairs)
    assert (concordance(a, b).agree, concordance(a, b).pairs) == (agree, len(pairs))


def test_levels_and_ranks() -> None:
    assert mean_absolute_error(array(0.5, 1.0), array(0.25, 0.75)) == 0.25
    assert spearman(array(1, 2, 3), array(1, 3, 2)) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert math.isnan(spearman(array(1, 1, 1), array(1, 2, 3)))


def test_all_measures_with_intervals() -> None:
    # Within prompt p the second agrees on one of one pair, within q on none of one.
    found = agreement([0.2, 0.8, 0.4, 0.6], [0.3, 0.9, 0.7, 0.5], ["p", "p", "q", "q"])
    assert found["concordance_within"].mean == 0.5
    assert found["concordance"].mean == pytest.approx(5 / 6)
    assert found["shift"].mean == pytest.approx(0.1)
    assert found["mae"].mean == pytest.approx((0.1 + 0.1 + 0.3 + 0.1) / 4)
    assert (found["concordance_within"].lo, found["concordance_within"].hi) == (0, 1)  # either prompt, drawn twice
    assert all(interval.n == 4 for interval in found.values())
    assert not found["shift"].known  # 0.1 in either prompt: drawing them again says nothing of others
    bounded = [interval for interval in found.values() if interval.known]
    assert len(bounded) >= 3 and all(interval.lo <= interval.mean <= interval.hi for interval in bounded)
    single = agreement([0.2, 0.8], [0.3, 0.9], ["p", "p"])["mae"]
    assert math.isnan(single.lo) and single.mean == pytest.approx(0.1)


def test_judges_that_differ_nowhere_have_no_interval_of_width_0() -> None:
    """Drawing prompts again shows nothing new where all are alike: that is no proof that all others would be."""
    scores = [0.2, 0.8, 0.4, 0.6]
    found = agreement(scores, scores, ["p", "p", "q", "q"])
    assert [found[name].mean for name in ("concordance", "concordance_within", "mae", "shift")] == [1, 1, 0, 0]
    assert not any(interval.known for interval in found.values())


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Nominal 95%: 40 prompts of 4 responses, a second judge that errs at random; the truth from a large sample."""
    rng = np.random.default_rng(1)

    def sample(prompts: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        level = np.repeat(rng.normal(size=prompts), 4)  # prompts differ: their responses are not independent
        quality = level + rng.normal(size=4 * prompts)
        return quality.round(), (quality + rng.normal(size=4 * prompts)).round(), np.repeat(range(prompts), 4).tolist()

    truth = concordance(*sample(20_000)[:2]).share
    intervals = [agreement(*sample(40), draws=60)["concordance"] for _ in range(60)]
    covered = sum(interval.lo <= truth <= interval.hi for interval in intervals)
    assert 50 <= covered <= 60  # 60 times 93%, within three standard deviations
