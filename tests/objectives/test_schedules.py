"""Schedules: values worked out by hand, ends exact, and nothing but progress matters."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.objectives.choices import AnnealKind
from agentrl.objectives.schedules import anneal_value, loss_progress, progress, reasoning_level, success_progress

POINTS = [0.2, 0.4, 0.6, 0.8]


def test_progress_is_a_share_of_the_horizon() -> None:
    assert progress(0, 24) == 0
    assert progress(6, 24, 1.0) == 0.25
    assert progress(6, 24, 0.5) == 0.5  # 6 / (0.5 * 24)
    assert progress(20, 24, 0.5) == 1  # past the horizon
    for bad in ((-1, 24, 1.0), (0, 0, 1.0), (0, 24, 0.0)):
        with pytest.raises(ValueError, match="above 0"):
            progress(*bad)


def test_progress_by_success_and_by_loss() -> None:
    assert [success_progress(solved) for solved in ([], [False] * 4, [True, False, False, True], [True])] == [
        0,
        0,
        0.5,
        1,
    ]
    assert loss_progress(0.0) == 1
    assert loss_progress(math.log(4)) == pytest.approx(0.25)  # the geometric mean of 1/2 and 1/8
    assert loss_progress(math.inf) == 0
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="must be >= 0"):
            loss_progress(bad)


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("linear", 0.25, 0.65),  # 0.8 - 0.6 * 0.25
        ("linear", 0.5, 0.5),
        ("constant", 0.7, 0.8),
        ("cosine", 0.5, 0.5),  # (1 - cos(pi/2)) / 2 = 1/2
        ("cosine", 1 / 3, 0.65),  # (1 - cos(pi/3)) / 2 = 1/4
        ("steps", 0.0, 0.8),  # four plateaus: 0.8, 0.6, 0.4, 0.2
        ("steps", 0.24, 0.8),
        ("steps", 0.25, 0.6),
        ("steps", 0.5, 0.4),
        ("steps", 0.99, 0.2),
        ("steps", 1.0, 0.2),
    ],
)
def test_anneal_values_by_hand(kind: str, share: float, expected: float) -> None:
    assert anneal_value(kind, 0.8, 0.2, share, num_steps=4) == pytest.approx(expected, abs=1e-12)


@given(st.sampled_from([kind for kind in get_args(AnnealKind) if kind != "constant"]), st.floats(0, 1), st.floats(0, 1))
def test_annealing_starts_and_ends_exactly_and_never_rises(kind: str, a: float, b: float) -> None:
    assert anneal_value(kind, 0.8, 0.2, 0.0, 5) == 0.8
    assert anneal_value(kind, 0.8, 0.2, 1.0, 5) == 0.2
    early, late = sorted((a, b))
    assert anneal_value(kind, 0.8, 0.2, early, 5) >= anneal_value(kind, 0.8, 0.2, late, 5) - 1e-12


def test_levels_fall_at_the_switch_points() -> None:
    assert [reasoning_level(p, POINTS) for p in (0, 0.19, 0.2, 0.39, 0.4, 0.6, 0.79, 0.8, 1)] == [
        4, 4, 3, 3, 2, 1, 1, 0, 0,
    ]  # fmt: skip
    assert reasoning_level(0, [0, 0, 0, 0]) == 0
    # S = 0.7 * 30 = 21 is not exact in binary; step 1 has reached 1/21 all the same.
    assert [reasoning_level(progress(s, 30, 0.7), [1 / 21, 0.4, 0.6, 0.8]) for s in (0, 1)] == [4, 3]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from"):
        anneal_value("exponential", 0.8, 0.2, 0.5)
    with pytest.raises(ValueError, match="num_steps"):
        anneal_value("steps", 0.8, 0.2, 0.5, num_steps=1)
    with pytest.raises(ValueError, match="progress"):
        anneal_value("linear", 0.8, 0.2, 1.5)
    with pytest.raises(ValueError, match="ascending"):
        reasoning_level(0.5, [0.4, 0.2, 0.6, 0.8])
    with pytest.raises(ValueError, match="ascending"):
        reasoning_level(0.5, [0.5])
