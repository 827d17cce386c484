"""The comparison of rules for the multiplier: what counts as settled, the table and the picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.rules import validate
from tests.support.helpers import composed


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("compare_dual")


def finish(run: Path, multipliers: list[float], averages: list[float], r_sys: float) -> None:
    run.mkdir(parents=True)
    result = {"after": {"r_sys": {"mean": r_sys}, "r_user": {"mean": 0.7}}}
    (run / "summary.json").write_text(json.dumps({"status": "completed", "eval": result}))
    rows = [{"lambda/sys": one, "ema/sys": other} for one, other in zip(multipliers, averages, strict=True)]
    del rows[0]["ema/sys"]  # the average begins after the first batch
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"eval": "after"}]))


def test_the_last_third_by_hand(script: Any) -> None:
    # 18 updates: the last third is 2, 2, 2, 2.5, 2.5, 2.5; the twelve before do not count
    end = script.ending([9.0] * 12 + [2.0] * 3 + [2.5] * 3, [0.1] * 12 + [0.81] * 6)
    assert end.multiplier == pytest.approx(2.25) and end.swing == pytest.approx(0.5)
    assert end.gap == pytest.approx(0.01)
    assert not end.settled  # the swing is above a fifth of 2.25
    assert script.ending([9.0] * 12 + [2.0] * 3 + [2.4] * 3, [0.81] * 18).settled
    assert not script.ending([1.5, 2.5] * 9, [0.81] * 18).settled  # it comes back, and goes again
    assert not script.ending([2.0] * 18, [0.83] * 18).settled  # the average stays off the threshold


def test_table_and_picture(script: Any, tmp_path: Path) -> None:
    for seed, r_sys in enumerate((0.78, 0.82)):
        finish(script.folder(tmp_path, "pid 0.3", seed), [2.0] * 12 + [2.0, 2.2] * 3, [0.81] * 18, r_sys)
    finish(script.folder(tmp_path, "fixed 2", 0), [2.0] * 18, [0.9] * 18, 0.9)
    _, _, pid, fixed = script.table(tmp_path, seeds=2)
    assert pid.startswith("| pid 0.3 | 2 | 0.800 [0.546, 1.000] |")  # t of 1 degree of freedom: 12.706 * 0.02
    assert pid.endswith("| +0.000 | 2.100, 2.100 | 0.200, 0.200 | +0.010, +0.010 | 2 of 2 |")
    assert fixed == "| fixed 2 | 1 | 0.900 [too few] | 0.700 [too few] | +0.100 | - | - | - | - |"
    script.plot(tmp_path, 2, tmp_path / "phase.png")
    assert (tmp_path / "phase.png").read_bytes().startswith(b"\x89PNG")


def test_every_arm_is_a_run_that_may_start(script: Any) -> None:
    for words in script.arms().values():
        validate(composed(*words))
    config = composed(*script.arms()["adam 0.06"])
    assert (config.dual.kind, config.dual.learning_rate, config.trainer.max_steps) == ("adam", 0.06, script.UPDATES)
