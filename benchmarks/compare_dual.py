"""Compare rules for HIPO's multiplier on minihif with the tiny model: do the missing runs, print and draw.

    python benchmarks/compare_dual.py runs/hipo_phase --jobs 2 --plot docs/images/hipo_phase.png > table.md

Four rules at three learning rates each, and fixed multipliers beside them, with 120 updates in place of 60. For every
run the table says whether the multiplier and the moving average of r_sys have settled. Over the last third of the
updates:

- the multiplier has settled if its largest and its smallest value differ by at most a fifth of its mean;
- the average has settled if its mean lies within 0.02 of the threshold.

An interrupted command continues where it stopped, and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from compare_hipo import folder, over_seeds, run_missing, summaries
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agentrl.report.markdown import cell
from agentrl.report.sweep import pareto_front

TAU = 0.8
UPDATES = 120
RULES: dict[str, tuple[float, ...]] = {  # a step of adam is about its rate, whatever the violation
    "sgd": (0.1, 0.3, 1.0),
    "log": (0.1, 0.3, 1.0),
    "pid": (0.1, 0.3, 1.0),
    "adam": (0.02, 0.06, 0.2),
}
FIXED = (1.0, 1.25, 1.5, 2.0)
COLOURS = {"sgd": "#1f4e8c", "log": "#2d8a5f", "pid": "#8a4fa3", "adam": "#c8553d", "fixed": "#777777"}
MARKERS = ("o", "s", "^", "D")  # from the lowest learning rate to the highest
SWING, GAP = 0.2, 0.02


def arms() -> dict[str, list[str]]:
    """Return the overrides of every arm; its name is the rule and its rate, or `fixed` and the multiplier."""
    run = [f"trainer.max_steps={UPDATES}", "eval.before=false"]
    found = {
        f"{rule} {rate:g}": ["algo=hipo", f"algo.tau={TAU}", f"dual={rule}", f"dual.learning_rate={rate:g}", *run]
        for rule, rates in RULES.items()
        for rate in rates
    }
    return found | {f"fixed {value:g}": ["algo=fixed_lambda", f"dual.initial={value:g}", *run] for value in FIXED}


@dataclass(frozen=True)
class Ending:
    """The last third of a run's updates."""

    multiplier: float  # its mean
    swing: float  # largest minus smallest
    gap: float  # mean of the moving average of r_sys minus the threshold

    @property
    def settled(self) -> bool:
        return self.swing <= SWING * self.multiplier and abs(self.gap) <= GAP


def curves(run: Path) -> tuple[list[float], list[float]]:
    """Return the multiplier of each update, and the moving average of r_sys, which begins after the first."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "lambda/sys" in row]
    return [row["lambda/sys"] for row in rows], [row["ema/sys"] for row in rows if "ema/sys" in row]


def ending(multipliers: list[float], averages: list[float]) -> Ending:
    """Measure the last third of the updates; at least three updates."""
    third = len(multipliers) // 3
    last = multipliers[-third:]
    return Ending(sum(last) / third, max(last) - min(last), sum(averages[-third:]) / third - TAU)


def table(runs: Path, seeds: int) -> list[str]:
    """Return the lines of the table: means over the seeds, with intervals if there are two or more."""
    names = "r_sys", "r_user", "r_sys - tau", "lambda", "its swing", "average - tau", "settled"
    rows = [f"| rule and rate | seeds | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for arm in arms():
        found = summaries(runs, arm, seeds)
        if not found:
            continue
        r_sys, r_user = (over_seeds(found, "after", "all", metric) for metric in ("r_sys", "r_user"))
        cells = [cell(r_sys), cell(r_user), f"{r_sys.mean - TAU:+.3f}"]
        if arm.startswith("fixed"):
            cells += ["-"] * 4
        else:
            places = [folder(runs, arm, seed) for seed in range(seeds)]
            ends = [ending(*curves(place)) for place in places if (place / "summary.json").exists()]
            for name, sign in (("multiplier", ""), ("swing", ""), ("gap", "+")):
                cells.append(", ".join(f"{getattr(end, name):{sign}.3f}" for end in ends))
            cells.append(f"{sum(end.settled for end in ends)} of {len(ends)}")
        rows.append(f"| {arm} | {len(found)} | {' | '.join(cells)} |")
    return rows


def plot(runs: Path, seeds: int, path: Path) -> None:
    """Draw r_user against the violation for all arms, and the multiplier over the updates for each rule."""
    figure = Figure(figsize=(11, 5.4), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    draw_phase(left.subplots(), runs, seeds)
    panels = right.subplots(2, 2, sharex=True, sharey=True)
    for ax, (rule, rates) in zip(panels.flat, RULES.items(), strict=True):
        for number, rate in enumerate(rates):
            for seed in range(seeds):
                place = folder(runs, f"{rule} {rate:g}", seed)
                if (place / "summary.json").exists():
                    name = f"rate {rate:g}" if seed == 0 else None
                    style = ("-", "--", ":")[number]
                    ax.plot(curves(place)[0], style, color=COLOURS[rule], linewidth=1, alpha=0.85, label=name)
        ax.axvspan(UPDATES * 2 / 3, UPDATES, color="#000000", alpha=0.05)  # what the criterion looks at
        ax.set_title(rule, fontsize=9)
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7)
    right.supxlabel("update", fontsize=9)
    right.supylabel("lambda", fontsize=9)
    figure.savefig(path)


def draw_phase(ax: Axes, runs: Path, seeds: int) -> None:
    """Draw one point for each arm, the mean over its seeds, small ones for the seeds, and the Pareto front."""
    points: list[tuple[float, float]] = []
    for arm in arms():
        found = summaries(runs, arm, seeds)
        if not found:
            continue
        rule, value = arm.split()
        number = RULES[rule].index(float(value)) if rule in RULES else 3
        ends = [tuple(one["eval"]["after"][metric]["mean"] for metric in ("r_sys", "r_user")) for one in found]
        x, y = TAU - sum(end[0] for end in ends) / len(ends), sum(end[1] for end in ends) / len(ends)
        points.append((x, y))
        ax.plot(x, y, MARKERS[number], color=COLOURS[rule], markersize=7, label=arm)
        ax.plot([TAU - end[0] for end in ends], [end[1] for end in ends], ".", color=COLOURS[rule], alpha=0.5)
    front = pareto_front(points)
    ax.plot([x for x, _ in front], [y for _, y in front], "--", color="#999999", zorder=0, label="Pareto front")
    ax.axvline(0.0, color="#000000", linewidth=0.8)
    ax.set_xlabel(f"violation: {TAU} - r_sys on the test split (right of 0 it is violated)")
    ax.set_ylabel("r_user on the test split")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=7, ncols=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", help="arms to run, e.g. sgd; the table shows all arms with runs")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    options = parser.parse_intermixed_args()
    runs = options.runs.absolute()
    chosen = {arm: words for arm, words in arms().items() if options.only is None or arm.startswith(options.only)}
    run_missing(runs, chosen, options.seeds, options.jobs, options.overrides)
    print("\n".join(table(runs, options.seeds)))
    if options.plot is not None:
        plot(runs, options.seeds, options.plot)


if __name__ == "__main__":
    main()
