"""Make PACT's Table 1 on minihop: train every row over five seeds, at a rate tuned on other tasks, and print the table.

    python benchmarks/compare_table1.py runs/pact_table1 --tune    # choose the rates anew, 93 runs
    python benchmarks/compare_table1.py runs/pact_table1           # train and print

Every row is tuned alike: its preset's learning rate and a ninth, a third, three and nine times of it, one run each
(seed 100), judged by the solve rate on tasks that no table uses (bench.data_seed=1). The best variant of PACT is chosen
there, too, at PACT's rate, before its own rate is. `table1_rates.json` beside this file has what was tried and chosen.
MatchTIR after SFT starts from the run of SFT with the same seed.

A run that is finished is not repeated. A cell is the mean over seeds of the mean over tasks, with a 95% interval
(Student's t; with one seed over tasks). Differences to PACT are paired by seed. A row shows the finished seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one_run import run_agentrl

from agentrl.config.compose import compose
from agentrl.core.errors import UserError
from agentrl.core.stats import Interval, seeds_interval
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
    "PACT, best variant": "pact_anchored",
}
AFTER_SFT, VARIANT = "SFT -> MatchTIR", "PACT, best variant"
VARIANTS = (  # of PACT, one key each (docs/pact.md)
    "algo.conditioned.advantages=positive",
    "algo.conditioned.floor=0.01",
    "algo.conditioned.weight=ratio",
    "algo.dual_clip=3",
    "algo.kl_context=prompt",
    "algo.sft_norm=tokens",
    "algo.q_from=success",
    "algo.q_from=loss",
)
PAIRS = (  # further differences of interest
    (AFTER_SFT, "MatchTIR"),
    (AFTER_SFT, "SFT"),
    (VARIANT, "GRPO, hard credit (L^x)"),
    (VARIANT, "GRPO, trajectory"),
)
METRICS = ("solve_r", "solve_p", "solve_f1", "solve_rate")  # R, P and F1 of the paper, and whole tasks
RATES = Path(__file__).with_name("table1_rates.json")
VALIDATION = ["bench.data_seed=1", "seed=100", "eval.before=false"]
FACTORS = (1 / 9, 1 / 3, 1, 3, 9)  # of the preset's learning rate


@dataclass(frozen=True)
class Choice:
    """What tuning chose for a row. Without a rate, the preset's learning rate stands."""

    rate: float | None = None
    keys: tuple[str, ...] = ()


def row_keys(row: str, shared: list[str], choice: Choice = Choice()) -> list[str]:
    """Return the overrides of a row but the seed and the model."""
    rates = [] if choice.rate is None else [f"trainer.learning_rate={choice.rate:g}"]
    return [f"experiment={ROWS[row]}", "trainer.tasks=with_trace", *rates, *choice.keys, *shared]


def job(row: str, seed: int, shared: list[str], chosen: dict[str, Choice]) -> list[str] | None:
    """Return the overrides of a run; None for MatchTIR after SFT while its run of SFT is not finished."""
    own = [*row_keys(row, shared, chosen.get(row, Choice())), f"seed={seed}"]
    if row != AFTER_SFT:
        return own
    first = run_path(compose([*row_keys("SFT", shared, chosen.get("SFT", Choice())), f"seed={seed}"]))
    return [*own, f"model={first}"] if finished(first) else None


def finished(run: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, else None."""
    place = run / "summary.json"
    summary: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return summary if summary.get("status") == "completed" else None


def train(jobs: list[list[str] | None], workers: int) -> bool:
    """Do the runs that are not finished, `workers` at a time; return whether all of them succeeded."""
    missing = [words for words in jobs if words is not None and finished(run_path(compose(words))) is None]
    with ThreadPoolExecutor(workers) as pool:
        return all(list(pool.map(lambda words: run_agentrl(" ".join(words), words), missing)))


def tune(shared: list[str], workers: int) -> bool:
    """Choose the best learning rate of every row on the validation tasks, and the best variant; write them to RATES.

    Returns whether all runs succeeded. A row whose runs all failed raises UserError.
    """
    told: dict[str, Any] = {}
    good = True
    late = [AFTER_SFT, VARIANT]  # they build on what was chosen for SFT and for PACT
    for rows in ([row for row in ROWS if row not in late], *([row] for row in late if row in ROWS)):
        keys: tuple[str, ...] = ()
        told |= {row: {} for row in rows}
        if rows == [VARIANT]:
            at_rate = {key: Choice(told["PACT"]["rate"], (key,)) for key in VARIANTS}
            tries = {key: [*row_keys(VARIANT, shared, choice), *VALIDATION] for key, choice in at_rate.items()}
            good = train([*tries.values()], workers) and good
            solved = measure(VARIANT, tries)
            keys = (max(solved, key=lambda key: solved[key]),)  # of equals, the first
            told[VARIANT] = {"keys": [*keys], "variants": solved}
        tried = {row: _rates_to_try(row, shared, keys, told) for row in rows}
        good = train([words for by_rate in tried.values() for words in by_rate.values()], workers) and good
        for row in rows:
            solved = measure(row, tried[row])
            best = max(solved, key=lambda rate: (solved[rate], -float(rate)))  # of equals, the smaller rate
            told[row] |= {"rate": float(best), "tried": solved}
    RATES.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return good


def _rates_to_try(row: str, shared: list[str], keys: tuple[str, ...], told: dict[str, Any]) -> dict[str, list[str]]:
    """Return the overrides of the validation runs of a row, by learning rate."""
    preset = compose(row_keys(row, shared)).trainer.learning_rate
    tries = {}
    for rate in (float(f"{factor * preset:.2g}") for factor in FACTORS):
        tries[f"{rate:g}"] = [*row_keys(row, shared, Choice(rate, keys)), *VALIDATION]
        if row == AFTER_SFT:
            first = run_path(compose([*row_keys("SFT", shared, Choice(told["SFT"]["rate"])), *VALIDATION]))
            tries[f"{rate:g}"].append(f"model={first}")
    return tries


def measure(row: str, tries: dict[str, list[str]]) -> dict[str, float]:
    """Return the solve rates of the finished validation runs of a row. Raises UserError if there are none."""
    found = {name: finished(run_path(compose(words))) for name, words in tries.items()}
    solved = {
        name: summary["eval"]["after"]["solve_rate"]["mean"] for name, summary in found.items() if summary is not None
    }
    if not solved:
        raise UserError(f"{row}: none of its {len(tries)} runs finished, so nothing can be chosen; see above why")
    return solved


def read_choices() -> dict[str, Choice]:
    """Read what tuning chose for each row."""
    told = json.loads(RATES.read_text(encoding="utf-8"))
    return {row: Choice(one["rate"], tuple(one.get("keys", ()))) for row, one in told.items()}


def find(row: str, seeds: list[int], shared: list[str], chosen: dict[str, Choice]) -> dict[int, dict[str, Any]]:
    """Return the summaries of the finished runs of a row, by seed."""
    jobs = {seed: job(row, seed, shared, chosen) for seed in seeds}
    found = {seed: finished(run_path(compose(words))) for seed, words in jobs.items() if words is not None}
    return {seed: summary for seed, summary in found.items() if summary is not None}


def table(found: dict[str, dict[int, dict[str, Any]]], chosen: dict[str, Choice]) -> list[str]:
    """Return the lines of the table. The last column is the difference to PACT in the solve rate."""
    lines = [
        f"| method | rate | seeds | {' | '.join(METRICS)} | solve_rate - PACT's |",
        "|---|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    known = [one for by_seed in found.values() for one in by_seed.values() if one["eval"].get("before")]
    if known and known[0]["model"] == "tiny":
        before = " | ".join(f"{known[0]['eval']['before'][metric]['mean']:.3f}" for metric in METRICS)
        lines.append(f"| before training | - | - | {before} | - |")
    after = {
        row: {
            seed: {metric: one["eval"]["after"][metric]["mean"] for metric in METRICS} for seed, one in by_seed.items()
        }
        for row, by_seed in found.items()
    }
    for row, values in after.items():
        rate = f"{chosen[row].rate:g}" if row in chosen else "-"
        row_name = f"{row} ({', '.join(chosen[row].keys)})" if row in chosen and chosen[row].keys else row
        if not values:
            lines.append(f"| {row_name} | {rate} | 0 | " + "not run | " * (len(METRICS) + 1))
            continue
        cells = [cell(seeds_interval([one[metric] for one in values.values()])) for metric in METRICS]
        if len(values) == 1:
            (alone,) = found[row].values()
            cells = [cell(Interval.from_dict(alone["eval"]["after"][metric])) for metric in METRICS]
        both = sorted(set(values) & set(after.get("PACT", {})))
        gaps = [values[seed]["solve_rate"] - after["PACT"][seed]["solve_rate"] for seed in both]
        gap = cell(seeds_interval(gaps, low=-1.0), signed=True) if gaps and row != "PACT" else "-"
        lines.append(f"| {row_name} | {rate} | {len(values)} | {' | '.join(cells)} | {gap} |")
    return lines


def differences(found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Return the differences of PAIRS in the solve rate, paired by seed; none for a pair without a common seed."""
    lines = []
    for one, other in PAIRS:
        rates = [
            {seed: run["eval"]["after"]["solve_rate"]["mean"] for seed, run in found.get(row, {}).items()}
            for row in (one, other)
        ]
        if both := sorted(rates[0].keys() & rates[1].keys()):
            gap = seeds_interval([rates[0][seed] - rates[1][seed] for seed in both], low=-1.0)
            lines.append(f"{one} minus {other}: {cell(gap, signed=True)} in the solve rate, {len(both)} seeds")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory of the runs")
    parser.add_argument("--tune", action="store_true", help="only choose the learning rates anew")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, one thread each")
    parser.add_argument("overrides", nargs="*", help="key=value for every run; seed=0,1 chooses the seeds")
    options = parser.parse_intermixed_args()
    typed = next((word.partition("=")[2] for word in options.overrides if word.startswith("seed=")), "0,1,2,3,4")
    if not all(one.isdigit() for one in typed.split(",")):
        parser.error(f"seed={typed}: must be whole numbers with commas between them, e.g. seed=0,1")
    seeds = [int(one) for one in typed.split(",")]
    own = [word for word in options.overrides if not word.startswith("seed=")]
    shared = ["hardware.threads=1", f"runs_dir={options.runs.absolute()}", *own]
    if options.tune:
        sys.exit(0 if tune(shared, options.jobs) else 1)
    chosen = read_choices()
    good = True
    for rows in ([row for row in ROWS if row != AFTER_SFT], [AFTER_SFT]):
        good = train([job(row, seed, shared, chosen) for seed in seeds for row in rows], options.jobs) and good
    found = {row: find(row, seeds, shared, chosen) for row in ROWS}
    print("\n".join([*table(found, chosen), *differences(found)]))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compare_table1.py: error: {error}")
