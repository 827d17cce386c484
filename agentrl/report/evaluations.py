"""Make the tables of `agentrl eval`: models side by side on each bench, and the paper's table with a row of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from agentrl.config.schema import Config
from agentrl.report.arms import (
    Arm,
    compare_arms,
    count_missing,
    difference_pairs,
    group_into_arms,
    list_metrics,
    load_records,
    pool_metric,
)
from agentrl.report.markdown import cell, markdown_table
from agentrl.report.page import Table
from agentrl.report.published import count_items, published_table
from agentrl.store.identity import run_path


def evaluation_tables(
    jobs: list[Config], suite: str | None, models: list[str], refused: Collection[Path] = ()
) -> Iterator[Table]:
    """Yield a table for each bench, with columns for models and for their differences; then the paper's table.

    Evaluations whose directory is in `refused` are left out.
    """
    done: dict[str, list[Path]] = {}
    for config in jobs:
        path = run_path(config)
        if (path / "summary.json").is_file() and path not in refused:
            done.setdefault(config.bench.name, []).append(path)
    for bench, paths in done.items():
        _, arms = group_into_arms(load_records(paths))
        given = [path.absolute() for path in paths]
        arms.sort(key=lambda arm: given.index(arm.runs[0].path))  # in the order of model=
        metrics = list_metrics(arms)
        for arm in arms:
            arm.label = str(arm.runs[0].settings["model.name"])
        labels = [arm.label for arm in arms]
        pairs = difference_pairs(arms)
        rows = [
            [
                metric,
                *(cell(pool_metric(arm, "after", metric)) for arm in arms),
                *(cell(compare_arms(base, trained, metric), signed=True) for base, trained in pairs),
            ]
            for metric in metrics
        ]
        items = max(count_items(arm.runs[0].summary or {}) for arm in arms)
        lacking = [
            f"{label} lacks {gap}" for label, arm in zip(labels, arms, strict=True) if (gap := count_missing(arm))
        ]
        lacking += [
            f"{label} leaves out {left_out} with too long a prompt"
            for label, arm in zip(labels, arms, strict=True)
            if (left_out := (arm.runs[0].summary or {}).get("too_long"))
        ]
        note = ", ".join([*lacking, "mean [95% interval, clustered; differences paired by item]"])
        head = ["metric", *labels, *(f"{trained.label} - {base.label}" for base, trained in pairs)]
        yield Table(f"{bench}: {items} items, {note}", head, rows, _sampling_note(arms))
    if suite is not None:
        for position, model in enumerate(models):
            own = jobs[position * (len(jobs) // len(models)) :][: len(jobs) // len(models)]
            finished = {config.bench.name: run_path(config) for config in own}
            yield published_table(suite, model, {b: path for b, path in finished.items() if path in done.get(b, [])})


def plain_text(table: Table) -> str:
    """Return a table as text for the terminal: its title above, its note below."""
    note = f"\n{table.note}" if table.note else ""
    return f"{table.title}\n{markdown_table(table.head, table.rows)}{note}"


def _sampling_note(arms: list[Arm]) -> str:
    """Return a line that says how the models were sampled, if not all were sampled alike; else an empty text."""
    keys = (
        *("model.thinking", "eval.temperature", "eval.top_p", "rollout.max_turns"),
        *("rollout.max_completion_tokens", "rollout.max_turn_tokens"),
    )
    values = [[arm.runs[0].settings.get(key) for arm in arms] for key in keys]
    unlike = [
        f"{key} {', '.join(map(str, found))}" for key, found in zip(keys, values, strict=True) if len(set(found)) > 1
    ]
    return f"not sampled alike, in the order of the columns: {'; '.join(unlike)}" if unlike else ""
