"""Report a finished sweep: the results over its axes with seeds pooled, as a table, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.core.stats import Interval
from agentrl.report.arms import Arm, group_into_arms, list_metrics, load_records, pool_metric
from agentrl.report.curves import COLOURS
from agentrl.report.markdown import cell
from agentrl.report.page import build_report, render

SHOWN = 5  # number of metrics in the table and as plots
UTILITY, CONSTRAINED = "r_user", "r_sys"  # of benches that grade a system's and a user's side


def report_sweep(folder: Path, runs: Sequence[Path], console: Console) -> None:
    """Print the table; write plots/*.png, report.html and report.md into the sweep's directory."""
    records = [record for record in load_records(runs) if record.summary is not None]
    keys, arms = group_into_arms(records)
    metrics = list_metrics(arms)[:SHOWN]
    if not metrics:
        return
    console.print(result_table(arms, metrics))
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    for metric in metrics:
        if keys:
            plot_axes(keys, arms, metric).savefig(plots / f"{metric.replace('/', '_')}.png")
    if (front := plot_front(arms, metrics)) is not None:
        front.savefig(plots / "pareto.png")
    report = build_report(records, folder.name)
    for kind in ("html", "md"):
        (folder / f"report.{kind}").write_text(render(report, kind), encoding="utf-8")


def result_table(arms: list[Arm], metrics: list[str]) -> Table:
    """Return the table of every metric after training, for every combination of values."""
    table = Table(caption="after training: mean [95% interval], seeds pooled", caption_justify="left")
    for name in ("runs", "seeds", *metrics):
        table.add_column(name, justify="left" if name == "runs" else "right", overflow="fold")
    for arm in arms:
        table.add_row(
            Text(arm.label),
            str(len(arm.completed)),
            *(Text(cell(pool_metric(arm, "after", m), absent="-")) for m in metrics),
        )
    return table


def plot_axes(keys: list[str], arms: list[Arm], metric: str) -> Figure:
    """Plot `metric` over the axis that has most values, with one series for each combination of the other axes."""
    axis = max(range(len(keys)), key=lambda i: (_numeric(arms, i), len({repr(arm.values[i]) for arm in arms})))
    series: dict[str, list[Arm]] = {}
    for arm in arms:
        rest = [
            f"{key.removesuffix('.name').rsplit('.', 1)[-1]}={value}"
            for i, (key, value) in enumerate(zip(keys, arm.values, strict=True))
            if i != axis and value is not None
        ]
        series.setdefault(" ".join(rest), []).append(arm)
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    ax = figure.subplots()
    ticks = list(dict.fromkeys(str(arm.values[axis]) for arm in arms))
    for number, (name, members) in enumerate(series.items()):
        found = [(arm.values[axis], pool_metric(arm, "after", metric)) for arm in members]
        points = [(value, cell) for value, cell in found if cell is not None]
        if _numeric(arms, axis):
            xs = [float(value) for value, _ in points]
        else:  # side by side, so that intervals of several series do not hide one another
            xs = [ticks.index(str(value)) + 0.12 * (number - (len(series) - 1) / 2) for value, _ in points]
        _draw(ax, xs, [cell for _, cell in points], COLOURS[number % len(COLOURS)], name, _numeric(arms, axis))
    if not _numeric(arms, axis):
        ax.set_xticks(range(len(ticks)), ticks)
    elif _spread([float(arm.values[axis]) for arm in arms]):
        ax.set_xscale("log")
    ax.set_xlabel(keys[axis])
    ax.set_ylabel(f"{metric} after training")
    ax.grid(alpha=0.25)
    if len(series) > 1:
        ax.legend(fontsize="small", framealpha=0.7)
    return figure


def plot_front(arms: list[Arm], metrics: list[str]) -> Figure | None:
    """Plot utility against violation: a point for each combination of values, and a line through the Pareto front.

    Return None if the runs have no two-sided rewards.
    """
    if UTILITY not in metrics or CONSTRAINED not in metrics:
        return None
    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    ax = figure.subplots()
    points: list[tuple[float, float]] = []
    for number, arm in enumerate(arms):
        utility, missed = pool_metric(arm, "after", UTILITY), violation(arm)
        if utility is None or missed is None:
            continue
        points.append((missed.mean, utility.mean))
        ax.errorbar(
            missed.mean, utility.mean, xerr=_bars(missed), yerr=_bars(utility), fmt="o", capsize=2,
            color=COLOURS[number % len(COLOURS)], label=arm.label,
        )  # fmt: skip
    front = pareto_front(points)
    ax.plot([x for x, _ in front], [y for _, y in front], color="#666666", linestyle="--", zorder=0, label="Pareto")
    ax.set_xlabel("violation: threshold minus mean of the worst kept constraint")
    ax.set_ylabel(UTILITY)
    ax.grid(alpha=0.25)
    ax.legend(fontsize="small", framealpha=0.7)
    return figure


def violation(arm: Arm) -> Interval | None:
    """Return the violation max(0, tau_k - mean reward) of the worst constraint in the evaluation, with its interval.

    The thresholds tau_k are those of the multipliers. Without a constraint it is 1 minus r_sys. None if the evaluation
    measured no constraint.
    """
    found = []
    for constraint in arm.runs[0].settings.get("algo.constraints") or [
        {"reward": "sys", "kind": None, "threshold": 1.0}
    ]:
        part = None if constraint["kind"] is None else ("kind", constraint["kind"])
        kept, tau = pool_metric(arm, "after", f"r_{constraint['reward']}", part), float(constraint["threshold"])
        if kept is not None:
            found.append(Interval(max(tau - kept.mean, 0.0), max(tau - kept.hi, 0.0), max(tau - kept.lo, 0.0), kept.n))
    return max(found, key=lambda missed: missed.mean, default=None)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (violation, utility) pairs that no other pair beats in both, by rising violation."""
    front: list[tuple[float, float]] = []
    for violation, utility in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or utility > front[-1][1]:
            front.append((violation, utility))
    return front


def _draw(ax: Axes, xs: list[float], cells: list[Interval], colour: str, name: str, joined: bool) -> None:
    order = sorted(range(len(xs)), key=xs.__getitem__)
    bars = [[_bars(cells[i])[side][0] for i in order] for side in (0, 1)]
    ax.errorbar(
        [xs[i] for i in order], [cells[i].mean for i in order], yerr=bars, fmt="o-" if joined else "o",
        capsize=3, color=colour, label=name,
    )  # fmt: skip


def _bars(cell: Interval) -> list[list[float]]:
    """Return how far an interval reaches below and above its mean, as matplotlib expects it; 0 if it is not known."""
    return [[cell.mean - cell.lo], [cell.hi - cell.mean]] if cell.known else [[0.0], [0.0]]


def _numeric(arms: list[Arm], axis: int) -> bool:
    values: list[Any] = [arm.values[axis] for arm in arms]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spread(values: list[float]) -> bool:
    """Check whether a logarithmic axis shows the values better."""
    return min(values) > 0 and max(values) / min(values) >= 30
