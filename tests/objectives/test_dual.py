"""Dual updates: by hand, to the KKT point of a convex problem, at the edges, and over a save and a load."""

from __future__ import annotations

import math

import pytest
import torch

from agentrl.objectives.dual import LOG_FLOOR, DualVariables, Multiplier

# max_x -(x - 3)^2 / 2 subject to s(x) = 1 - x^2 / 2 >= -1: the boundary is x = 2, where the Lagrangian's gradient
# -(x - 3) - lambda x = 0 gives lambda = 1/2. The constraint is inactive for tau <= s(3) = -3.5: then lambda = 0, x = 3.
TAU, LAMBDA, X = -1.0, 0.5, 2.0
SETTINGS = {
    "sgd": {"learning_rate": 0.02},
    "adam": {"learning_rate": 0.002},
    "pid": {"learning_rate": 0.02, "k_p": 0.05, "k_d": 0.05},
    "log": {"learning_rate": 0.05},
}


def s(x: float) -> float:
    return 1 - x**2 / 2


def solve(multiplier: Multiplier, steps: int = 3000) -> float:
    """Alternate a gradient step on x with one update of the multiplier; returns x."""
    x = 0.0
    for _ in range(steps):
        x += 0.05 * (-(x - 3) - float(multiplier.value) * x)
        multiplier.update(s(x))
    return x


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_each_kind_finds_the_kkt_multiplier(kind: str, decay: float):
    multiplier = Multiplier(kind, TAU, initial=2.0, cap=20.0, decay=decay, **SETTINGS[kind])
    x = solve(multiplier)
    assert float(multiplier.value) == pytest.approx(LAMBDA, abs=1e-3)
    assert x == pytest.approx(X, abs=1e-3)


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_inactive_constraint_ends_with_a_multiplier_of_zero(kind: str):
    multiplier = Multiplier(kind, threshold=-4.0, initial=1.0, **SETTINGS[kind])
    x = solve(multiplier)
    assert float(multiplier.value) == pytest.approx(0.0, abs=1e-3)
    assert x == pytest.approx(3.0, abs=2e-3)


def test_two_constraints_find_both_multipliers():
    # max -((x - 3)^2 + (y - 2)^2) / 2 with -x >= -1 and -y >= -1.5: lambda = (3 - 1, 2 - 1.5).
    dual = DualVariables({name: Multiplier("sgd", tau, 0.0, 0.02) for name, tau in (("a", -1.0), ("b", -1.5))})
    x = y = 0.0
    for _ in range(2500):
        a, b = dual.values().tolist()
        x, y = x + 0.05 * (3 - x - a), y + 0.05 * (2 - y - b)
        dual.update({"a": -x, "b": -y})
    assert dual.values().tolist() == pytest.approx([2.0, 0.5], abs=1e-3)


def test_one_update_of_each_kind_by_hand():
    # tau 0.7, first EMA 0.5, then 0.9 * 0.5 + 0.1 * 0.4 = 0.49: violations 0.2 and 0.21.
    common = {"threshold": 0.7, "initial": 2.0, "cap": 20.0, "decay": 0.9}
    sgd = Multiplier("sgd", learning_rate=0.07, **common)
    sgd.update(0.5)
    assert float(sgd.value) == pytest.approx(2.0 + 0.07 * 0.2)
    sgd.update(0.4)
    assert float(sgd.ema) == pytest.approx(0.49)
    assert float(sgd.value) == pytest.approx(2.014 + 0.07 * 0.21)
    log = Multiplier("log", learning_rate=0.5, **common)
    log.update(0.5)
    assert float(log.value) == pytest.approx(2.0 * math.exp(0.5 * 0.2))
    # Adam's first step has size eta whatever the violation; then m = .9*.02+.1*.21 = .039, v = .999*4e-5+.001*.0441.
    adam = Multiplier("adam", learning_rate=0.07, **common)
    adam.update(0.5)
    assert float(adam.value) == pytest.approx(2.07)
    adam.update(0.4)
    mean, square = 0.039 / (1 - 0.9**2), (0.999 * 4e-5 + 4.41e-5) / (1 - 0.999**2)
    assert float(adam.value) == pytest.approx(2.07 + 0.07 * mean / math.sqrt(square))
    # I = 2 + .07 * .2 = 2.014, lambda = I + .5 * .2; then I = 2.0287, and the EMA fell by 0.01.
    pid = Multiplier("pid", learning_rate=0.07, k_p=0.5, k_d=3.0, **common)
    pid.update(0.5)
    assert float(pid.value) == pytest.approx(2.014 + 0.1)
    pid.update(0.4)
    assert float(pid.value) == pytest.approx(2.0287 + 0.5 * 0.21 + 3.0 * 0.01)
    fixed = Multiplier("fixed", learning_rate=0.07, **common)
    fixed.update(0.5)
    assert float(fixed.value) == 2.0
    assert float(fixed.ema) == 0.5


def test_batches_that_meet_the_threshold_alike_are_counted():
    multiplier = Multiplier("sgd", 0.7, initial=0.1, learning_rate=1.0)
    for measured, alike, counted in ((1.0, True, 1), (0.7, True, 2), (1.0, False, 0), (0.6, True, 0), (0.8, True, 1)):
        multiplier.update(measured, alike)
        assert int(multiplier.satisfied) == counted
    multiplier.update(None)
    assert int(multiplier.satisfied) == 1


def test_projection_onto_zero_and_the_cap():
    multiplier = Multiplier("sgd", 0.7, initial=0.1, learning_rate=1.0, cap=0.5)
    multiplier.update(1.0)
    assert float(multiplier.value) == 0.0
    for _ in range(3):
        multiplier.update(0.0)
    assert float(multiplier.value) == 0.5
    assert int(multiplier.at_cap) == 3
    multiplier.update(1.0)
    assert int(multiplier.at_cap) == 0
    wound = Multiplier("pid", 0.7, initial=0.0, learning_rate=1.0, cap=0.5)
    for _ in range(50):
        wound.update(0.0)
    wound.update(1.0)
    assert float(wound.value) == pytest.approx(0.2), "the integral was held at the cap, so it comes down at once"
    log = Multiplier("log", 0.0, initial=0.0, learning_rate=100.0)
    log.update(1.0)
    assert float(log.value) == LOG_FLOOR


def test_warm_up_moves_the_average_alone_and_nothing_measured_moves_nothing():
    multiplier = Multiplier("sgd", 0.7, initial=1.0, learning_rate=1.0, warmup=2)
    multiplier.update(0.5)
    multiplier.update(0.6)
    assert float(multiplier.value) == 1.0 and float(multiplier.ema) == 0.6
    multiplier.update(None)
    multiplier.update(math.nan)
    assert int(multiplier.updates) == 2
    multiplier.update(0.5)
    assert float(multiplier.value) == pytest.approx(1.2)


@pytest.mark.parametrize("kind", [*SETTINGS, "fixed"])
def test_a_restored_multiplier_goes_on_exactly(kind: str):
    def fresh() -> DualVariables:
        settings = SETTINGS.get(kind, {"learning_rate": 0.1})
        return DualVariables({"sys": Multiplier(kind, 0.7, 2.0, cap=3.0, decay=0.9, warmup=1, **settings)})

    measured = [0.5, 0.61, 0.93, 0.2, 0.77, 1.0]
    whole, first, second = fresh(), fresh(), fresh()
    for value in measured:
        whole.update({"sys": value})
    for value in measured[:3]:
        first.update({"sys": value})
    second.load_state_dict(first.state_dict())
    for value in measured[3:]:
        second.update({"sys": value})
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), second.buffers(), strict=True))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="sgd, adam, pid, log, fixed"):
        Multiplier("newton", 0.7, 1.0, 0.1)
