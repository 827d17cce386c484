"""Compare two runs, or two arms of several seeds: their results, and the settings that differ."""

from __future__ import annotations

import json
from typing import Any

from agentrl.config.checks import format_value
from agentrl.core.errors import UserError
from agentrl.core.stats import Interval
from agentrl.report.arms import (
    Arm,
    RunRecord,
    compare_arms,
    compare_by_item,
    group_into_arms,
    list_metrics,
    pool_metric,
)
from agentrl.report.page import Table, cell


def compare_tables(first: list[RunRecord], second: list[RunRecord], name_a: str, name_b: str) -> list[Table]:
    """Return the table of results and the table of settings of two arms, which the user calls `name_a` and `name_b`.

    Raises:
        UserError: the runs of one side differ in more than the seed, are not complete, or the sides were evaluated on
            different benches.
    """
    a, b = _arm(first, name_a), _arm(second, name_b)
    benches = [arm.runs[0].settings["bench.name"] for arm in (a, b)]
    if benches[0] != benches[1]:
        raise UserError(
            f"{name_a} was evaluated on {benches[0]} and {name_b} on {benches[1]}; compare runs of one bench"
        )
    return [_results(a, b, name_a, name_b), _settings(a, b)]


def _arm(records: list[RunRecord], name: str) -> Arm:
    _, arms = group_into_arms(records)
    if len(arms) > 1:
        labels = ", ".join(arm.label for arm in arms)
        raise UserError(
            f"{name} holds {len(arms)} different settings ({labels}); name a run, or the seeds of one setting"
        )
    if not arms[0].completed:
        states = ", ".join(sorted({str(run.status["status"]) for run in arms[0].runs}))
        raise UserError(f"{name} has no result yet ({states}); agentrl resume continues a run")
    return arms[0]


def _results(a: Arm, b: Arm, name_a: str, name_b: str) -> Table:
    rows, paired = [], False
    for metric in list_metrics([a, b]):
        gap = _gap(a, b, metric)
        paired |= gap is not None
        rows.append(
            [
                metric,
                cell(pool_metric(a, "after", metric)),
                cell(pool_metric(b, "after", metric)),
                cell(gap, signed=True),
                str(gap.n) if gap else "–",
            ]
        )
    single, common = _single(a, b), {run.seed for run in a.completed} & {run.seed for run in b.completed}
    pairs = "item" if single else "seed" if len(common) > 1 else "item of the one seed in common"
    note = f"Mean [95% interval]; B - A is paired by {pairs}, n counts pairs."
    if not paired:
        note = f"Mean [95% interval]. No B - A: A and B have no {'item' if single else 'seed'} in common."
    for side, arm in (("A", a), ("B", b)):
        if len(arm.completed) < len(arm.runs):
            note += f" {side} has the results of {len(arm.completed)} of its {len(arm.runs)} runs."
    return Table(f"A: {name_a}\nB: {name_b}", ["metric", "A", "B", "B - A", "n"], rows, note)


def _gap(a: Arm, b: Arm, metric: str) -> Interval | None:
    if _single(a, b):
        return compare_by_item(a.completed[0], b.completed[0], metric)
    return compare_arms(a, b, metric)


def _single(a: Arm, b: Arm) -> bool:
    return len(a.completed) == len(b.completed) == 1


def _settings(a: Arm, b: Arm) -> Table:
    """Return the keys whose values differ, and the code if it differs."""
    left, right = ({**arm.runs[0].settings, **_code(arm.runs[0])} for arm in (a, b))
    several = len(a.runs) > 1 or len(b.runs) > 1
    keys = [key for key in sorted({**left, **right}) if left.get(key) != right.get(key)]
    rows = [[key, _show(left, key), _show(right, key)] for key in keys if not (several and key == "seed")]
    return Table("What differs" if rows else "Their settings are the same.", ["key", "A", "B"], rows)


def _code(run: RunRecord) -> dict[str, Any]:
    """Return the version and the commit of the code that made the run, as its environment.json says."""
    try:
        found = json.loads(run.directory.environment_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run that was copied without this file still has settings
        return {}
    return {"(agentrl)": found.get("agentrl"), "(git commit)": (found.get("git") or {}).get("commit", "")[:10]}


def _show(values: dict[str, Any], key: str) -> str:
    return format_value(values[key]) if key in values else "–"
