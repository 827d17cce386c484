"""Collect what a report says as data; report.html.jinja and report.md.jinja make a page of it.

The page is self-contained: it loads no script, no font and no image. Everything that a model or a tool wrote is
escaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from agentrl.config.load import load_config
from agentrl.core.errors import UserError
from agentrl.core.pages import render_template
from agentrl.core.version import __version__
from agentrl.cost.estimate import estimate
from agentrl.report.arms import (
    Arm,
    RunRecord,
    compare_arms,
    difference_pairs,
    group_into_arms,
    group_rank,
    list_metrics,
    pool_metric,
    rank,
)
from agentrl.report.curves import COLOURS, MAX_ARMS, arm_curves
from agentrl.report.markdown import cell
from agentrl.report.rollouts import View, first_and_last, view
from agentrl.report.table import missing_text

SECTIONS = ("Results", "Differences", "Grid", "Diagnosis", "Compute", "Settings", "Runs")
ROLLOUTS = 2  # shown of the first and of the last step, for each arm
MAX_DIFFERENCES = 28  # the pairs of eight arms; with more arms only the differences to the first arm are shown


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class Report:
    """Everything on the page."""

    title: str
    version: str
    tables: dict[str, list[Table]]  # by section of the page
    curves: list[tuple[str, str]] = field(default_factory=list)  # title, SVG
    rollouts: list[tuple[str, int, list[View]]] = field(default_factory=list)  # arm, seed, rollouts
    left_out: int = 0  # arms that the curves do not show


def build_report(records: list[RunRecord], title: str) -> Report:
    """Build the report of some runs. Runs on different benches are kept apart, because their numbers do not compare."""
    report = Report(title, __version__, {name: [] for name in SECTIONS})
    by_bench: dict[str, list[RunRecord]] = {}
    for record in records:
        by_bench.setdefault(str(record.settings.get("bench.name")), []).append(record)
    for bench, found in sorted(by_bench.items()):
        _add(report, found, f"{bench}: " if len(by_bench) > 1 else "")
    return report


def _add(report: Report, records: list[RunRecord], prefix: str) -> None:
    """Add everything about the runs on one bench; titles begin with `prefix`."""
    keys, arms = group_into_arms(records)
    metrics = list_metrics(arms)
    tables = {
        "Results": [_results(arms, metrics), *_splits(arms, metrics)],
        "Differences": _differences(arms, metrics),
        "Grid": _grids(keys, arms, metrics),
        "Diagnosis": _diagnosis(arms),
        "Compute": [_ledger(arms)],
        "Settings": [_settings(keys, arms)],
        "Runs": [_runs(arms)],
    }
    for name, found in tables.items():
        report.tables[name].extend(replace(table, title=f"{prefix}{table.title}".rstrip(": ")) for table in found)
    report.curves.extend((f"{prefix}{title}", svg) for title, svg in arm_curves(arms))
    report.rollouts.extend((f"{prefix}{arm.label}", arm.runs[0].seed, _samples(arm.runs[0])) for arm in arms)
    report.left_out += max(len(arms) - MAX_ARMS, 0)


def render(report: Report, kind: str) -> str:
    """Return the report as text of `kind`, "html" or "md"."""
    return render_template("agentrl.report", f"report.{kind}.jinja", report=report, colours=COLOURS)


def _samples(run: RunRecord) -> list[View]:
    return first_and_last([view(record) for record in run.directory.records(run.directory.rollouts_path)], ROLLOUTS)


def _runs(arms: list[Arm]) -> Table:
    rows = []
    for arm in arms:
        for run in arm.runs:
            steps = str(run.summary["steps"]) if run.summary else "–"
            reason = str(run.status.get("error", "")).strip().splitlines() or [missing_text(run.summary or {})]
            rows.append([arm.label, str(run.seed), run.status["status"], steps, reason[-1], str(run.path)])
        for run in arm.repeated:
            reason = [f"left out: a later run has seed {run.seed} too"]
            rows.append([arm.label, str(run.seed), run.status["status"], "–", reason[-1], str(run.path)])
    return Table("", ["arm", "seed", "status", "updates", "reason", "directory"], rows)


def _results(arms: list[Arm], metrics: list[str]) -> Table:
    head, phases = _columns(arms, metrics)
    if not phases:  # no run is complete yet
        return Table("", [], [])
    rows = [
        [arm.label, str(len(arm.completed)), *(cell(pool_metric(arm, phase, metric)) for metric, phase in phases)]
        for arm in arms
    ]
    return Table(_title(phases), ["arm", "seeds", *head], rows, _interval_note(arms))


def _columns(arms: list[Arm], metrics: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the heads of the columns, and the metric and phase of each.

    There are columns for before training only if some run was evaluated then.
    """
    twice = any(pool_metric(arm, "before", metric) for arm in arms for metric in metrics)
    phases = [(metric, phase) for metric in metrics for phase in (("before", "after") if twice else ("after",))]
    return [f"{metric} {phase}" if twice else metric for metric, phase in phases], phases


def _title(phases: list[tuple[str, str]]) -> str:
    return "Before and after training" if any(phase == "before" for _, phase in phases) else "After training"


def _splits(arms: list[Arm], metrics: list[str]) -> list[Table]:
    """Return a table of results for each group that a bench names (hops, conflicting or aligned...)."""
    found: dict[str, set[str]] = {}
    for arm in arms:
        for run in arm.completed:
            for group, parts in run.by.items():
                found.setdefault(group, set()).update(parts)
    head, phases = _columns(arms, metrics)
    tables = []
    for group, values in found.items():
        rows = [
            [arm.label, value, *(cell(pool_metric(arm, phase, metric, (group, value))) for metric, phase in phases)]
            for arm in arms
            for value in sorted(values, key=group_rank)
        ]
        tables.append(Table(f"{_title(phases)}, by {group}", ["arm", group, *head], rows))
    return tables


def _differences(arms: list[Arm], metrics: list[str]) -> list[Table]:
    note = "Paired by item within a run; runs of several seeds are pooled."
    known = [{metric: pool_metric(arm, "difference", metric) for metric in metrics} for arm in arms]
    gains = [
        [arm.label, *(cell(gain, signed=True) for gain in by_metric.values())]
        for arm, by_metric in zip(arms, known, strict=True)
        if any(by_metric.values())  # else none of its runs was evaluated before training
    ]
    tables = [Table("After against before", ["arm", *metrics], gains, note)] if gains else []
    pairs = difference_pairs(arms)
    if len(pairs) > MAX_DIFFERENCES:
        pairs = [pair for pair in pairs if arms[0] in pair]
    rows = [
        [f"{other.label} - {one.label}", *(cell(compare_arms(one, other, m), signed=True) for m in metrics)]
        for one, other in pairs
    ]
    if rows:
        note = "The trained arm minus the arm that it was trained from; paired by seed if seeds differ, else by item."
        tables.append(Table("Between arms, after training", ["difference", *metrics], rows, note))
    return tables


def _grids(keys: list[str], arms: list[Arm], metrics: list[str]) -> list[Table]:
    """Return a table of the first metric for every pair of swept keys that alone tell the arms apart."""
    if len(keys) != 2 or not metrics:
        return []
    # Compared as text, because a value may be a list.
    down, across = (sorted({repr(arm.values[i]): arm.values[i] for arm in arms}.values(), key=rank) for i in (0, 1))
    at = {repr(arm.values): arm for arm in arms}
    rows = []
    for first in down:
        cells = [at.get(repr((first, second))) for second in across]
        rows.append([str(first), *(cell(pool_metric(arm, "after", metrics[0])) if arm else "–" for arm in cells)])
    return [Table(f"{metrics[0]} after training", [f"{keys[0]} \\ {keys[1]}", *map(str, across)], rows)]


MEASURED = {
    "norm_x": "|g_x|",
    "norm_h": "|g_h|",
    "norm_sft": "|g_SFT|",
    "cos_x_h": "cos(x, h)",
    "cos_x_sft": "cos(x, SFT)",
    "cos_h_sft": "cos(h, SFT)",
    "pull_good_x": "pull up, x",
    "pull_good_h": "pull up, h",
    "improbable_x": "p < 0.01, x",
    "improbable_h": "p < 0.01, h",
    "shift_good": "d, good",
    "shift_bad": "d, bad",
}
MEANING = (
    "g: gradients of L^x, L^h and L_SFT on the same rollouts and traces. Pull up: mean |A| (1 - p) where A > 0; "
    "near 0, nothing is left to reinforce. p < 0.01: share of the push on tokens with A < 0 that is on tokens which "
    "the context makes improbable anyway. d: log p(y|x,h) - log p(y|x) of tokens with A > 0 (good) and A < 0 (bad)."
)


def _diagnosis(arms: list[Arm]) -> list[Table]:
    """Return what trainer.diagnose measured, in the first and in the last third of each arm's measurements."""
    rows = []
    for arm in arms:
        runs = [run.directory.read_metrics() for run in arm.runs]
        measured = [[row for row in run if any(key.startswith("diagnose/") for key in row)] for run in runs]
        third = max((len(run) + 2) // 3 for run in measured)
        for name, parts in (("first", [run[:third] for run in measured]), ("last", [run[-third:] for run in measured])):
            found = [row for part in parts for row in part] if third else []
            if found:
                cells = [_mean_cell([row.get(f"diagnose/{key}") for row in found]) for key in MEASURED]
                rows.append([arm.label, name, *cells])
    return [Table("What the terms pull at", ["arm", "third", *MEASURED.values()], rows, MEANING)] if rows else []


def _mean_cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else "–"


def _ledger(arms: list[Arm]) -> Table:
    """Return what one run of each arm cost on average."""
    rows = []
    for arm in arms:
        runs = [run for run in arm.completed if run.summary]
        if runs:
            columns = zip(*(_costs(run) for run in runs), strict=True)
            rows.append([arm.label, str(len(runs)), *(f"{sum(column) / len(runs):,.0f}" for column in columns)])
    head = ["arm", "runs", "updates", "sequences trained on", "rollouts", "tokens seen", "wall time, s"]
    return Table("A run on average", head, rows)


def _costs(run: RunRecord) -> tuple[float, ...]:
    summary = run.summary or {}
    try:
        planned = estimate(load_config(run.path))
        # a run that only evaluates plans no updates
        trained = planned.sequences * summary["steps"] / planned.updates if planned.updates else 0.0
        rollouts = trained if planned.rollout_tokens else 0.0
    except UserError:  # the run was saved by a version with other keys
        trained = rollouts = math.nan
    return summary["steps"], trained, rollouts, summary["tokens"]["seen"], summary["wall_s"]


def _settings(keys: list[str], arms: list[Arm]) -> Table:
    """Return every key whose value differs between arms."""
    names = sorted({key for arm in arms for key in arm.runs[0].settings})
    rows = []
    for name in names:
        values = [arm.runs[0].settings.get(name) for arm in arms]
        if name != "seed" and len({repr(value) for value in values}) > 1:
            rows.append([name, *("–" if value is None else str(value) for value in values)])
    return Table("Keys that differ between arms", ["key", *(arm.label for arm in arms)], rows)


def _interval_note(arms: list[Arm]) -> str:
    seeds = {len(arm.completed) for arm in arms}
    over = "over seeds (Student's t)" if min(seeds, default=0) > 1 else "over items, clustered, if an arm has one run"
    return f"Mean [95% interval]; intervals are {over}. Too few: not enough items or runs for an interval."
