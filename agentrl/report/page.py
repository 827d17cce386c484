"""What a report says, as data; report.html.jinja and report.md.jinja put it into a page.

One self-contained page: no script from elsewhere, no font, no image that is not inside. Everything a model or a tool
wrote is escaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

import agentrl
from agentrl.config.load import load_config
from agentrl.errors import UserError
from agentrl.estimate import estimate
from agentrl.report.arms import Arm, RunRecord, arms_of, compared, difference_pairs, metrics_of, pooled, rank
from agentrl.report.curves import COLOURS, MAX_ARMS, arm_curves
from agentrl.report.markdown import cell
from agentrl.report.rollouts import View, first_and_last, view
from agentrl.report.table import missing_text

ROLLOUTS = 2  # of the first and of the last step, for each arm
MAX_DIFFERENCES = 28  # pairs of eight arms; beyond that only the differences to the first arm are shown


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    version: str
    tables: dict[str, list[Table]]  # by section
    curves: list[tuple[str, str]] = field(default_factory=list)  # title, SVG
    rollouts: list[tuple[str, int, list[View]]] = field(default_factory=list)  # arm, seed, rollouts
    left_out: int = 0  # arms that the curves do not show


def build_report(records: list[RunRecord], title: str) -> Report:
    """The report of some runs."""
    keys, arms = arms_of(records)
    metrics = metrics_of(arms)
    return Report(
        title=title,
        version=agentrl.__version__,
        tables={
            "Results": [_results(arms, metrics), *_splits(arms, metrics)],
            "Differences": _differences(arms, metrics),
            "Grid": _grids(keys, arms, metrics),
            "Compute": [_ledger(arms)],
            "Settings": [_settings(keys, arms)],
            "Runs": [_runs(arms)],
        },
        curves=arm_curves(arms),
        rollouts=[(arm.label, arm.runs[0].seed, _samples(arm.runs[0])) for arm in arms],
        left_out=max(len(arms) - MAX_ARMS, 0),
    )


def render(report: Report, kind: str) -> str:
    """The report as text of `kind`, "html" or "md"."""
    environment = Environment(
        loader=PackageLoader("agentrl.report", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"report.{kind}.jinja").render(report=report, colours=COLOURS)


def _samples(run: RunRecord) -> list[View]:
    return first_and_last([view(record) for record in run.directory.records(run.directory.rollouts_path)], ROLLOUTS)


def _runs(arms: list[Arm]) -> Table:
    rows = []
    for arm in arms:
        for run in arm.runs:
            steps = str(run.summary["steps"]) if run.summary else "–"
            reason = str(run.status.get("error", "")).strip().splitlines() or [missing_text(run.summary or {})]
            rows.append([arm.label, str(run.seed), run.status["status"], steps, reason[-1], str(run.path)])
    return Table("", ["arm", "seed", "status", "updates", "reason", "directory"], rows)


def _results(arms: list[Arm], metrics: list[str]) -> Table:
    rows = []
    for arm in arms:
        cells = [cell(pooled(arm, "after", metric)) for metric in metrics]
        rows.append([arm.label, str(len(arm.completed)), *cells])
    return Table("After training", ["arm", "seeds", *metrics], [*_before(arms, metrics), *rows], _interval_note(arms))


def _before(arms: list[Arm], metrics: list[str]) -> list[list[str]]:
    """One row where all arms started from the same evaluation, else one an arm."""
    rows = {
        tuple(cell(pooled(arm, "before", metric)) for metric in metrics): arm.label for arm in arms if arm.completed
    }
    rows = {cells: label for cells, label in rows.items() if set(cells) != {"–"}}
    if len(rows) == 1:
        return [["before training", "–", *next(iter(rows))]]
    return [[f"{label}, before", "–", *cells] for cells, label in rows.items()]


def _splits(arms: list[Arm], metrics: list[str]) -> list[Table]:
    """Results by the groups that a bench names (hops, conflicting or aligned...), one table each."""
    found: dict[str, dict[str, None]] = {}
    for arm in arms:
        for run in arm.completed:
            for group, parts in run.by.items():
                found.setdefault(group, {}).update(dict.fromkeys(parts))
    tables = []
    for group, values in found.items():
        rows = [
            [arm.label, value, *(cell(pooled(arm, "after", metric, (group, value))) for metric in metrics)]
            for arm in arms
            for value in values
        ]
        tables.append(Table(f"After training, by {group}", ["arm", group, *metrics], rows))
    return tables


def _differences(arms: list[Arm], metrics: list[str]) -> list[Table]:
    note = "Paired by item within a run; runs of several seeds are pooled."
    gains = [[arm.label, *(cell(pooled(arm, "difference", m), signed=True) for m in metrics)] for arm in arms]
    tables = [
        Table(
            "After against before",
            ["arm", *metrics],
            gains,
            note,
        )
    ]
    pairs = difference_pairs(arms)
    if len(pairs) > MAX_DIFFERENCES:
        pairs = [pair for pair in pairs if arms[0] in pair]
    rows = [
        [f"{other.label} - {one.label}", *(cell(compared(one, other, m), signed=True) for m in metrics)]
        for one, other in pairs
    ]
    if rows:
        note = "What was trained from another minus it; paired by seed where seeds differ, else by item."
        tables.append(Table("Between arms, after training", ["difference", *metrics], rows, note))
    return tables


def _grids(keys: list[str], arms: list[Arm], metrics: list[str]) -> list[Table]:
    """For every pair of swept keys that alone tell arms apart: the first metric over their values."""
    if len(keys) != 2 or not metrics:
        return []
    # By text, for a value may be a list.
    down, across = (sorted({repr(arm.values[i]): arm.values[i] for arm in arms}.values(), key=rank) for i in (0, 1))
    at = {repr(arm.values): arm for arm in arms}
    rows = []
    for first in down:
        cells = [at.get(repr((first, second))) for second in across]
        rows.append([str(first), *(cell(pooled(arm, "after", metrics[0])) if arm else "–" for arm in cells)])
    return [Table(f"{metrics[0]} after training", [f"{keys[0]} \\ {keys[1]}", *map(str, across)], rows)]


def _ledger(arms: list[Arm]) -> Table:
    """What each arm cost, a run on average."""
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
        trained = planned.sequences * summary["steps"] / planned.updates
        rollouts = trained if planned.rollout_tokens else 0.0
    except UserError:  # saved by a version with other keys
        trained = rollouts = math.nan
    return summary["steps"], trained, rollouts, summary["tokens"]["seen"], summary["wall_s"]


def _settings(keys: list[str], arms: list[Arm]) -> Table:
    """Every key whose value differs between arms."""
    names = sorted({key for arm in arms for key in arm.runs[0].settings})
    rows = []
    for name in names:
        values = [arm.runs[0].settings.get(name) for arm in arms]
        if name != "seed" and len({repr(value) for value in values}) > 1:
            rows.append([name, *("–" if value is None else str(value) for value in values)])
    return Table("Keys that differ between arms", ["key", *(arm.label for arm in arms)], rows)


def _interval_note(arms: list[Arm]) -> str:
    seeds = {len(arm.completed) for arm in arms}
    over = (
        "over seeds (Student's t)" if min(seeds, default=0) > 1 else "over items, clustered, where an arm has one run"
    )
    return f"Mean [95% interval]; intervals are {over}. Where too few items or runs are there for one: too few."
