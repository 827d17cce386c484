"""Compare HIPO with its baselines on minihif with the tiny model: do the missing runs, print tables, plot the front.

    python benchmarks/compare_hipo.py runs/hipo_minihif --jobs 2 --plot docs/images/hipo_minihif.png > table.md

Every run contributes one number per metric: its mean over the test items, two samples each, at temperature 1. Intervals
are Student's t over the seeds, within [0, 1]. An interrupted command continues where it stopped, and finished runs are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from one_run import run_agentrl

from agentrl.benches import load_bench
from agentrl.benches.minihif_optimum import optimum
from agentrl.config.load import load_config
from agentrl.core.stats import ROUNDING, Interval, seeds_interval
from agentrl.report.markdown import cell

TAUS = (0.7, 0.8, 0.85, 0.9)
LAMBDAS = (0.5, 1.0, 2.0, 4.0)
ARMS: dict[str, list[str]] = {
    "sft": ["bench=minihif", "algo=sft"],
    "dpo": ["algo=dpo"],
    "split_softmax": ["algo=split_softmax"],
    "focal_lora": ["algo=focal_lora"],
    "sys_only": ["algo=sys_only"],
    "user_only": ["algo=user_only"],
    **{f"fixed_lambda {value:g}": ["algo=fixed_lambda", f"dual.initial={value:g}"] for value in LAMBDAS},
    "gdpo 2": ["algo=gdpo", "dual.initial=2"],
    "scalarised tau=0.8": ["algo=scalarised", "algo.tau=0.8"],
    "repo tau=0.8": ["algo=repo", "algo.tau=0.8"],
    **{f"hipo tau={tau:g}": ["algo=hipo", f"algo.tau={tau:g}"] for tau in TAUS},
}
KINDS = ("all", "conflict", "aligned")
COLUMNS = tuple((kind, metric) for kind in KINDS for metric in ("r_sys", "r_user"))


def folder(runs: Path, arm: str, seed: int) -> Path:
    return runs / arm.replace(" ", "-").replace("=", "") / f"seed{seed}"


def run_missing(runs: Path, arms: dict[str, list[str]], seeds: int, workers: int, extra: list[str]) -> None:
    """Do the runs that have no summary yet, seed by seed, so that all arms can be compared early."""
    missing = [
        (runs, arm, [*words, *extra], seed)
        for seed in range(seeds)
        for arm, words in arms.items()
        if not (folder(runs, arm, seed) / "summary.json").exists()
    ]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: start(*job), missing))


def start(runs: Path, arm: str, words: list[str], seed: int) -> None:
    """Do one run in its own process. A failure is printed at once and does not stop the others."""
    path = folder(runs, arm, seed)
    place = [f"runs_dir={runs}", f"name={path.parent.name}", f"run_id={path.name}", f"seed={seed}"]
    run_agentrl(f"{arm} seed {seed}", [*place, "hardware.threads=1", *words])


def summaries(runs: Path, arm: str, seeds: int) -> list[dict]:
    """Return the summaries of the completed runs of an arm."""
    paths = [folder(runs, arm, seed) / "summary.json" for seed in range(seeds)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return [summary for summary in found if summary["status"] == "completed"]


def over_seeds(found: list[dict], phase: str, kind: str, metric: str) -> Interval:
    """Return Student's t over the seeds, within [0, 1]; no bounds if the seeds are equal, because others may differ."""
    parts = [summary["eval"] if kind == "all" else summary["by"]["kind"][kind] for summary in found]
    interval = seeds_interval([part[phase][metric]["mean"] for part in parts])
    return interval if interval.hi - interval.lo > ROUNDING else replace(interval, lo=math.nan, hi=math.nan)


def table(runs: Path, seeds: int) -> list[str]:
    rows = ["| method | seeds | " + " | ".join(f"{metric} {kind}" for kind, metric in COLUMNS) + " |"]
    rows.append("|---|---|" + "---|" * len(COLUMNS))
    for number, arm in enumerate(ARMS):
        found = summaries(runs, arm, seeds)
        if not found:
            continue
        for name, phase in ([("base", "before")] if number == 0 else []) + [(arm, "after")]:
            cells = [cell(over_seeds(found, phase, kind, metric)) for kind, metric in COLUMNS]
            rows.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return rows


def distances(runs: Path, seeds: int) -> list[str]:
    """Return a table of how far each constrained arm is from the optimum of its problem on the test prompts."""
    rows = ["| method | r_sys | r_user | optimum r_sys | optimum r_user | optimal lambda | distance, mean over seeds |"]
    rows.append("|---|---|---|---|---|---|---|")
    for arm in (arm for arm in ARMS if arm.startswith("hipo")):
        found = summaries(runs, arm, seeds)
        if not found:
            continue
        config = load_config(next(path for seed in range(seeds) if (path := folder(runs, arm, seed)).exists()))
        best = optimum(load_bench(config.bench).tasks("test"), config.algo.tau)
        if best is None:
            rows.append(f"| {arm} | | | no policy reaches it | | | |")
            continue
        reached = [[one["eval"]["after"][metric]["mean"] for metric in ("r_sys", "r_user")] for one in found]
        r_sys, r_user = (sum(column) / len(found) for column in zip(*reached, strict=True))
        apart = sum(best.distance(*one) for one in reached) / len(found)
        numbers = (r_sys, r_user, best.r_sys, best.r_user, best.multiplier, apart)
        rows.append(f"| {arm} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    return rows


def plot(runs: Path, seeds: int, path: Path) -> None:
    """Plot r_user against r_sys: means over seeds with 95% intervals, and HIPO's thresholds as ticks on its points."""
    figure = Figure(figsize=(7, 5), dpi=110, layout="constrained")
    ax = figure.subplots()
    styles = {"hipo": ("o", "#1f4e8c"), "fixed_lambda": ("s", "#c8553d")}
    lines: dict[str, list[tuple[float, float]]] = {}
    for number, arm in enumerate(ARMS):
        found = summaries(runs, arm, seeds)
        if not found:
            continue
        method, _, value = arm.partition(" ")
        marker, colour = styles.get(method, ("^", "#555555"))
        for name, phase in ([("base", "before")] if number == 0 else []) + [(value or arm, "after")]:
            x, y = (over_seeds(found, phase, "all", metric) for metric in ("r_sys", "r_user"))
            bars = {f"{axis}err": [[i.mean - i.lo], [i.hi - i.mean]] for axis, i in (("x", x), ("y", y)) if i.known}
            ax.errorbar(x.mean, y.mean, **bars, fmt=marker, color=colour, markersize=6, capsize=2, linewidth=1)
            label, offset = (f"lambda={name}", (-8, -12)) if method == "fixed_lambda" else (name, (6, 5))
            side = "right" if method == "fixed_lambda" else "left"
            ax.annotate(label, (x.mean, y.mean), xytext=offset, textcoords="offset points", fontsize=8, ha=side)
            if method in styles:
                lines.setdefault(method, []).append((x.mean, y.mean))
    for method, points in lines.items():
        marker, colour = styles[method]
        ax.plot(*zip(*points, strict=True), color=colour, alpha=0.5, marker=marker, label=method)
    ax.set_xlabel("mean r_sys on the test split")
    ax.set_ylabel("mean r_user on the test split")
    ax.set_title("minihif, tiny model: means and 95% intervals over seeds")
    ax.set_xlim(right=1.06)
    ax.grid(alpha=0.25)
    ax.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", help="arms to run, e.g. hipo; the table shows all arms with runs")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    options = parser.parse_intermixed_args()
    runs = options.runs.absolute()
    chosen = {arm: words for arm, words in ARMS.items() if options.only is None or arm.startswith(options.only)}
    run_missing(runs, chosen, options.seeds, options.jobs, options.overrides)
    print("\n".join([*table(runs, options.seeds), "", *distances(runs, options.seeds)]))
    if options.plot is not None:
        plot(runs, options.seeds, options.plot)


if __name__ == "__main__":
    main()
