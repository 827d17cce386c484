"""Plots and tables: the files of a run, and what they show."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agentrl.report.plots import _smooth, curve, plot_run
from agentrl.report.table import print_result, result_table, result_text

KEYS = (
    "reward",
    "solve_rate",
    "loss/total",
    "loss/rl",
    "loss/sft",
    "anneal/level",
    "anneal/call_scale",
    "anneal/kept",
    "kl",
    "clip_ratio",
    "tools/error_rate",
    "entropy",
    "completion/mean_tokens",
    "grad_norm",
    "lr",
)


@pytest.mark.slow
def test_every_key_gets_its_panel(tmp_path: Path) -> None:
    metrics = [{"step": step} | {key: float(step) for key in KEYS} for step in range(12)]
    written = plot_run(metrics, tmp_path / "plots")
    names = {path.stem for path in written}
    singles = {key.replace("/", "_") for key in KEYS if not key.startswith("anneal")}
    assert names == singles | {"anneal", "overview"}
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000


def test_missing_keys_and_values_are_skipped(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = [
        {"step": 1, "reward": 0.5, "kl": None, "entropy": math.nan},
        {"step": 2, "reward": None, "note": "text"},
    ]
    assert {path.stem for path in plot_run(metrics, tmp_path / "plots")} == {"reward", "overview"}
    assert plot_run([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    x, y = curve([{"step": 3, "a": 1}, {"step": 4}, {"a": 2}, {"step": 5, "a": math.inf}], "a")
    assert (x.tolist(), y.tolist()) == ([3.0], [1.0])


def test_smoothing_keeps_constants_lines_and_ends() -> None:
    np.testing.assert_allclose(_smooth(np.full(30, 2.5)), 2.5)
    np.testing.assert_allclose(_smooth(np.arange(30.0)), np.arange(30.0))
    # the window of 10 points reaches 2 to each side: (0 + 0 + 5 + 0 + 0) / 5 around a spike
    assert _smooth(np.array([0, 0, 0, 0, 5.0, 0, 0, 0, 0, 0]))[4] == pytest.approx(1.0)


def interval(mean: float, half: float | None) -> dict[str, Any]:
    lo, hi = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "lo": lo, "hi": hi, "n": 64}


SUMMARY: dict[str, Any] = {
    "algo": "pact",
    "model": "tiny",
    "bench": "minihop",
    "eval": {
        "before": {"solve_rate": interval(0.2, 0.05), "answer_f1": interval(0.3, 0.1)},
        "after": {"solve_rate": interval(0.4, 0.05), "answer_f1": interval(0.29, None)},
        "difference": {"solve_rate": interval(0.2, 0.1), "answer_f1": interval(-0.01, 0.05)},
    },
}


def test_the_text_table_marks_clear_differences() -> None:
    lines = result_text(SUMMARY).splitlines()
    assert lines[0] == "algo=pact model=tiny bench=minihop"
    assert lines[2].split("  ")[0] == "solve_rate"
    assert "0.200 [0.150, 0.250]" in lines[2] and "+0.200 [+0.100, +0.300]*" in lines[2] and lines[2].endswith("64")
    assert "0.290 [too few]" in lines[3] and "-0.010 [-0.060, +0.040] " in lines[3] and "*" not in lines[3]


def test_one_sided_evaluations_still_print() -> None:
    only_after = {"eval": {"after": SUMMARY["eval"]["after"]}}
    lines = result_text(only_after).splitlines()
    assert lines[1].split() == ["metric", "after", "items"]  # a column without a value is left out
    assert lines[2].split()[:2] == ["solve_rate", "0.400"]
    assert result_text({"eval": {}}) == result_text({}) == "no evaluation results"
    result_table(only_after)


@pytest.mark.parametrize(("terminal", "width", "boxed"), [(True, 120, True), (True, 40, False), (False, 120, False)])
def test_terminals_get_a_box_and_logs_plain_lines(terminal: bool, width: int, boxed: bool) -> None:
    out = io.StringIO()
    print_result(SUMMARY, Console(file=out, force_terminal=terminal, width=width))
    assert ("┃" in out.getvalue()) is boxed
    assert "0.400 [0.350, 0.450]" in out.getvalue()  # brackets are text, not markup
    assert out.getvalue().isascii() is not boxed
