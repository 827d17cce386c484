"""Show the papers' main tables with a row of ours: same columns, same order; published.yaml holds their figures."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from agentrl.report.page import Table

SUITES = {"pact": ("ftrl", "bfcl", "toolhop"), "hipo": ("systemcheck",)}
COLUMNS = {
    "pact": ("Solve-R", "Solve-P", "Solve-F1", "Multi-Turn", "Search", "Memory", "BFCL avg", "ToolHop AC", "Avg"),
    "hipo": ("conflict r_sys", "conflict r_user", "aligned r_sys", "aligned r_user"),
}
SOURCES = {"pact": "PACT, arXiv 2606.16215, Table 1, percent", "hipo": "HIPO, arXiv 2603.16152, Tables 1 and 7"}
VERDICTS = ("valid", "correct", "solved")  # the names that BFCL's categories give their score


def published_table(suite: str, model: str, runs: dict[str, Path]) -> Table:
    """Return the published rows for `model` (or for the smallest published model), and our row from `runs` by bench."""
    published = yaml.safe_load(files("agentrl.report").joinpath("published.yaml").read_text(encoding="utf-8"))[suite]
    reference = model if model in published else next(iter(published))
    form = "{:.2f}" if suite == "pact" else "{:.4f}"
    rows = [[name, *(form.format(value) for value in values)] for name, values in published[reference].items()]
    summaries = {bench: json.loads((path / "summary.json").read_text(encoding="utf-8")) for bench, path in runs.items()}
    ours = _pact_row(summaries) if suite == "pact" else _hipo_row(summaries)
    rows.append([f"ours: {model}", *("–" if value is None else form.format(value) for value in ours)])
    note = f"{SOURCES[suite]}; published rows are for {reference}, the last row was measured here"
    return Table(note, ["method", *COLUMNS[suite]], rows)


def _pact_row(summaries: dict[str, Any]) -> list[float | None]:
    """Return our row in percent; an average is None if a part of it is None."""
    ftrl = _after(summaries.get("ftrl"))
    solved = [_percent(ftrl, name) for name in ("solve_r", "solve_p", "solve_f1")]
    categories = summaries.get("bfcl", {}).get("by", {}).get("category", {})
    parts = []
    for prefix in ("multi_turn", "web_search", "memory"):
        scores = [_verdict(phases["after"]) for name, phases in categories.items() if name.startswith(prefix)]
        parts.append(_mean(scores))
    bfcl, correct = _mean(parts), _percent(_after(summaries.get("toolhop")), "answer_correct")
    return [*solved, *parts, bfcl, correct, _mean([*solved, bfcl, correct])]


def _hipo_row(summaries: dict[str, Any]) -> list[float | None]:
    kinds = summaries.get("systemcheck", {}).get("by", {}).get("kind", {})
    return [
        kinds.get(kind, {}).get("after", {}).get(metric, {}).get("mean")
        for kind in ("conflict", "aligned")
        for metric in ("r_sys", "r_user")
    ]


def _after(summary: dict[str, Any] | None) -> dict[str, Any]:
    return summary["eval"]["after"] if summary else {}


def _percent(metrics: dict[str, Any], name: str) -> float | None:
    mean = metrics.get(name, {}).get("mean")
    return None if mean is None else 100 * float(mean)


def _verdict(metrics: dict[str, Any]) -> float | None:
    return next((_percent(metrics, name) for name in VERDICTS if name in metrics), None)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
