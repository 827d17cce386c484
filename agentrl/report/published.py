"""Show the papers' main tables with a row of ours: same columns, same order; published.yaml holds their figures."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from agentrl.config.benches import BFCL_GROUPS
from agentrl.report.page import Table

SUITES = {"pact": ("ftrl", "bfcl", "toolhop"), "hipo": ("systemcheck",)}
COLUMNS = {
    "pact": ("Solve-R", "Solve-P", "Solve-F1", "Multi-Turn", "Search", "Memory", "BFCL avg", "ToolHop AC", "Avg"),
    "hipo": ("conflict r_sys", "conflict r_user", "aligned r_sys", "aligned r_user"),
}
SOURCES = {"pact": "PACT, arXiv 2606.16215, Table 1, percent", "hipo": "HIPO, arXiv 2603.16152, Tables 1 and 7"}
# What the paper's table is about: all items, and PACT's rule of the final answer. A run's own division comes first.
SUITE_KEYS = {
    "toolhop": ("bench.rule=ftrl", "bench.test_fraction=1"),
    "bfcl": ("bench.test_fraction=1",),
}
PARTS = ("multi_turn", "web_search", "memory")  # groups of BFCL's categories, in the order of the columns
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
    if counts := ", ".join(f"{bench} {count_items(summary)}" for bench, summary in summaries.items()):
        note += f" (items: {counts})"
    for bench, summary in summaries.items():
        if left_out := summary.get("too_long"):
            note += f"; {bench} lacks {left_out} items with too long a prompt"
    if suite == "pact" and "bfcl" in summaries and (missing := _missing_categories(summaries["bfcl"])):
        note += f"; BFCL lacks {', '.join(missing)}"
    return Table(note, ["method", *COLUMNS[suite]], rows)


def count_items(summary: dict[str, Any]) -> int:
    """Return the number of items of an evaluation. A metric may be about some items only, so the largest n counts."""
    return max((int(cell.get("n", 0)) for cell in _after(summary).values()), default=0)


def _missing_categories(bfcl: dict[str, Any]) -> list[str]:
    """List the categories of the paper that an evaluation of BFCL did not play."""
    played = bfcl.get("by", {}).get("category", {})
    return [name for group in PARTS for name in BFCL_GROUPS[group] if name not in played]


def _pact_row(summaries: dict[str, Any]) -> list[float | None]:
    """Return our row in percent; an average is None if a part of it is None, or was not played."""
    ftrl = _after(summaries.get("ftrl"))
    solved = [_percent(ftrl, name) for name in ("solve_r", "solve_p", "solve_f1")]
    categories = summaries.get("bfcl", {}).get("by", {}).get("category", {})
    parts = []
    for group in PARTS:
        played = [categories.get(name, {}).get("after") for name in BFCL_GROUPS[group]]
        parts.append(_mean([None if phase is None else _verdict(phase) for phase in played]))
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
    return summary.get("eval", {}).get("after", {}) if summary else {}


def _percent(metrics: dict[str, Any], name: str) -> float | None:
    mean = metrics.get(name, {}).get("mean")
    return None if mean is None else 100 * float(mean)


def _verdict(metrics: dict[str, Any]) -> float | None:
    return next((_percent(metrics, name) for name in VERDICTS if name in metrics), None)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
