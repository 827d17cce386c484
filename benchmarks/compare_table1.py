"""Make PACT's Table 1 on minihop from the runs of `sweep=pact_table1`: train MatchTIR after SFT, and print the table.

    agentrl sweep=pact_table1 runs_dir=runs/pact_table1 hardware.threads=1
    python benchmarks/compare_table1.py runs/pact_table1 hardware.threads=1

Give it the overrides of the sweep, seed=0,1 included. MatchTIR after SFT needs finished runs of SFT, so its runs are
started here, one after the other; finished runs are not repeated. A cell is the mean over seeds of the mean over tasks,
with a 95% interval (Student's t). Differences to PACT are paired by seed. A row shows the seeds that are finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentrl.config.compose import compose
from agentrl.core.errors import UserError
from agentrl.core.stats import seeds_interval
from agentrl.report.markdown import cell
from agentrl.store.identity import run_path

ROWS = {  # the paper's rows in its order, then what it does not have; the experiment of each
    "SFT": "sft",
    "GRPO, trajectory": "grpo",
    "GRPO, hard credit (L^x)": "pact_lx",
    "FTRL": "ftrl",
    "ToolRL": "toolrl",
    "CHORD-mu": "chord",
    "CHORD-phi": "chord_phi",
    "MatchTIR": "matchtir",
    "SFT -> MatchTIR": "matchtir",
    "LUFFY": "luffy",
    "SRFT": "srft",
    "OPSD": "opsd",
    "SDAR": "sdar",
    "RLSD": "rlsd",
    "GRPO with hints": "hint_grpo",
    "PACT": "pact_anchored",
}
AFTER_SFT = "SFT -> MatchTIR"
METRICS = ("solve_r", "solve_p", "solve_f1", "solve_rate")  # R, P and F1 of the paper, and whole tasks


def job(row: str, seed: int, shared: list[str]) -> list[str] | None:
    """Return the overrides of a run; None for MatchTIR after SFT while its run of SFT is not finished."""
    own = [f"experiment={ROWS[row]}", f"seed={seed}", *shared]
    if row != AFTER_SFT:
        return own
    first = run_path(compose([f"experiment={ROWS['SFT']}", f"seed={seed}", *shared]))
    return [*own, f"model={first}"] if finished(first) else None


def finished(run: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, else None."""
    place = run / "summary.json"
    summary: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return summary if summary.get("status") == "completed" else None


def find(row: str, seeds: list[int], shared: list[str]) -> dict[int, dict[str, Any]]:
    """Return the summaries of the finished runs of a row, by seed."""
    jobs = {seed: job(row, seed, shared) for seed in seeds}
    found = {seed: finished(run_path(compose(words))) for seed, words in jobs.items() if words is not None}
    return {seed: summary for seed, summary in found.items() if summary is not None}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Return the lines of the table. The last column is the difference to PACT in the solve rate."""
    lines = [
        f"| method | seeds | {' | '.join(METRICS)} | solve_rate - PACT's |",
        "|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    known = [one for by_seed in found.values() for one in by_seed.values() if one["eval"].get("before")]
    if known and known[0]["model"] == "tiny":
        before = " | ".join(f"{known[0]['eval']['before'][metric]['mean']:.3f}" for metric in METRICS)
        lines.append(f"| before training | - | {before} | - |")
    after = {
        row: {
            seed: {metric: one["eval"]["after"][metric]["mean"] for metric in METRICS} for seed, one in by_seed.items()
        }
        for row, by_seed in found.items()
    }
    for row, values in after.items():
        if not values:
            lines.append(f"| {row} | 0 | " + "not run | " * (len(METRICS) + 1))
            continue
        cells = [cell(seeds_interval([one[metric] for one in values.values()])) for metric in METRICS]
        both = sorted(set(values) & set(after.get("PACT", {})))
        gaps = [values[seed]["solve_rate"] - after["PACT"][seed]["solve_rate"] for seed in both]
        gap = cell(seeds_interval(gaps, low=-1.0), signed=True) if gaps and row != "PACT" else "-"
        lines.append(f"| {row} | {len(values)} | {' | '.join(cells)} | {gap} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", help="the runs_dir of the sweep")
    parser.add_argument("overrides", nargs="*", help="those of the sweep, e.g. seed=0,1 hardware.threads=1")
    options = parser.parse_args()
    runs, overrides = options.runs, options.overrides
    chosen = next((word.partition("=")[2] for word in overrides if word.startswith("seed=")), "0,1,2,3,4")
    if not all(one.isdigit() for one in chosen.split(",")):
        parser.error(f"seed={chosen}: must be whole numbers with commas between them, e.g. seed=0,1")
    seeds = [int(one) for one in chosen.split(",")]
    own = [word for word in overrides if not word.startswith(("seed=", "hydra/", "hydra."))]
    shared = ["trainer.tasks=with_trace", f"runs_dir={runs}", *own]
    failed = 0
    for seed in seeds:
        words = job(AFTER_SFT, seed, shared)
        if words is not None and finished(run_path(compose(words))) is None:
            done = subprocess.run([sys.executable, "-m", "agentrl", *words], stdout=sys.stderr)
            failed = failed or done.returncode  # the run has said why; the table shows the finished ones
    print("\n".join(table({row: find(row, seeds, shared) for row in ROWS})))
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compare_table1.py: error: {error}")
