"""SmolLM2-135M before training, and both methods beside their baselines on it: do the missing runs, print tables.

    make smollm2 minilm
    python benchmarks/compare_smollm2.py runs/smollm2 baselines --data DIR
    python benchmarks/compare_smollm2.py runs/smollm2 pact --seeds 2
    python benchmarks/compare_smollm2.py runs/smollm2 hipo --seeds 2 --data DIR hardware=gpu --jobs 4

--data names a folder with verih/test.json, sys_ifeval/sys_ifeval.jsonl, sys_ifeval/ifeval.jsonl, tensortrust/ and
toolhop/*.json. Intervals are those over the test items of one run. An interrupted command continues where it stopped,
and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_dual import curves
from matplotlib.figure import Figure
from one_run import run_agentrl
from verih_rules import make_traces, write_splits

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m"
ENCODER = Path(__file__).parents[1] / "models" / "minilm"
TOOLS = "model.chat_template=chatml_tools"
# Each suite: its bench, its file below --data, keys, and the metrics that its authors report.
CALLS = [TOOLS, "rollout.max_turn_tokens=128", "rollout.max_turns=6"]
SUITES: dict[str, tuple[str, str, list[str], tuple[str, ...]]] = {
    "minihop": ("minihop", "", CALLS, ("solve_rate", "solve_r")),
    "ToolHop": ("toolhop", "toolhop", [*CALLS, "bench.test_fraction=0.99"], ("answer_correct",)),
    "S-IFEval": ("sys_ifeval", "sys_ifeval/sys_ifeval.jsonl", [], ("prompt_strict", "instruction_strict")),
    "VerIH": ("verih", "verih/test.json", [], ("r_sys",)),
    "TensorTrust": ("tensortrust", "tensortrust", [], ("passed",)),
    "IFEval": (  # the instructions in the user's message, as in the model's published result
        *("sys_ifeval", "sys_ifeval/ifeval.jsonl"),
        ["bench.test_fraction=1", "rollout.max_completion_tokens=1280"],
        ("prompt_strict", "instruction_strict"),
    ),
}
SHORT = ["rollout.max_prompt_tokens=384", "rollout.max_completion_tokens=96"]  # of smollm2_rules
SAMPLING = {"greedy": ["temperature=0"], "sampled": ["temperature=1", "top_p=1"]}
PACT = {
    "grpo": ["algo=grpo"],
    "pact": ["algo=pact"],
    "pact, q = 1": ["algo=pact", "algo.q=1"],  # L^x + L_SFT, the variant that did best on minihop
}
HIPO = {
    "user_only": ["algo=user_only", "dual.initial=0"],
    "sys_only": ["algo=sys_only"],
    "fixed_lambda 1": ["algo=fixed_lambda", "dual.initial=1"],
    "fixed_lambda 4": ["algo=fixed_lambda", "dual.initial=4"],
    "hipo": ["algo=hipo"],
}


@dataclass(frozen=True)
class Job:
    """A run: the row of the table it belongs to, its place below the runs, and its command line."""

    row: str
    place: str
    arguments: list[str]

    def summary(self, runs: Path) -> dict[str, Any] | None:
        """Return the summary of the finished run, or None."""
        file = runs / self.place / "summary.json"
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found if found.get("status") == "completed" else None

    def run(self, runs: Path, extra: list[str]) -> bool:
        """Do the run in a process of its own. A failure is printed at once, and is False."""
        if self.summary(runs):
            return True
        name, _, run_id = self.place.rpartition("/")
        place = [f"runs_dir={runs}", f"name={name}", f"run_id={run_id}"]
        return run_agentrl(self.place, [*self.arguments, *place, *extra])


def baselines(runs: Path, data: Path, limit: int) -> list[Job]:
    """Return the evaluations of the model as it comes."""
    return [
        Job(f"{suite}, {how}", f"{suite}-{how}/all", [
            *("eval", f"model={MODEL}", f"bench={bench}", f"eval.limit={limit}", *keys, *sampling),
            *([f"bench.path={found(data / file)}"] if file else []),
        ])
        for how, sampling in SAMPLING.items()
        for suite, (bench, file, keys, _) in SUITES.items()
    ]  # fmt: skip


def found(path: Path) -> Path:
    """Return the file at `path`, or the only JSON file of that folder."""
    files = sorted(path.glob("*.json"))
    return files[0] if len(files) == 1 else path


def pact(runs: Path, seeds: int) -> tuple[Job, list[Job]]:
    """Return the cold start, and the runs from its checkpoint."""
    cold = Job("cold start", "cold/seed0", ["experiment=smollm2_sft", f"model={MODEL}"])
    start = ["experiment=smollm2_pact", f"model={runs / cold.place}"]
    return cold, [
        Job(arm, f"{arm.replace(', q = ', '-q')}/seed{seed}", [*start, *keys, f"seed={seed}"])
        for seed in range(seeds)
        for arm, keys in PACT.items()
    ]


def hipo(runs: Path, seeds: int) -> tuple[Job, Job, list[Job]]:
    """Return the model's own replies, the cold start that imitates them once they are edited, and the runs from it."""
    rules = runs / "verih_rules"
    first = [f"bench.path={rules / 'train.json'}", "bench.test_fraction=1", *SHORT]
    own = Job("own replies", "own/replies", ["eval", f"model={MODEL}", "bench=verih", *first])
    keys = [f"bench.path={rules}", f"judge.path={ENCODER}"]
    traces = f"traces={rules / 'traces.jsonl'}"
    cold = Job("cold start", "rules/seed0", ["experiment=smollm2_rules", f"model={MODEL}", traces, *keys])
    start = ["experiment=smollm2_hipo", f"model={runs / cold.place}", *keys]
    return (
        own,
        cold,
        [
            Job(arm, f"{arm.replace(' ', '-')}/seed{seed}", [*start, *keys_, f"seed={seed}"])
            for seed in range(seeds)
            for arm, keys_ in HIPO.items()
        ],
    )


def prepare(own: Job, cold: Job, runs: Path, data: Path, extra: list[str]) -> bool:
    """Divide VerIH, and do the two runs that all arms begin with. A step that is done is not repeated."""
    rules = runs / "verih_rules"
    write_splits(data / "verih" / "test.json", rules)
    if not own.run(runs, [word for word in for_cold_start(extra) if not word.startswith(("trainer.", "eval."))]):
        return False
    make_traces(runs / own.place, rules)
    return cold.run(runs, for_cold_start(extra))


def for_cold_start(extra: list[str]) -> list[str]:
    """Return the overrides without keys of the model: a cold start trains all weights, and they need 32 bits."""
    return [word for word in extra if not word.startswith("model.")]


def cell(estimates: dict[str, Any] | None, metric: str) -> str:
    """Write an estimate as mean [95% interval], or the mean alone if there are too few clusters for an interval."""
    value = (estimates or {}).get(metric)
    if value is None:
        return "-"
    interval = "" if value["lo"] is None else f" [{value['lo']:.3f}, {value['hi']:.3f}]"
    return f"{value['mean']:.3f}{interval}"


def rows(jobs: list[Job], runs: Path, group: str, kinds: tuple[str, ...], metrics: tuple[str, ...]) -> list[str]:
    """Write a table of training runs: a row for each, before and after, over all items and over those of each kind."""
    columns = [(kind, metric) for kind in ("all", *kinds) for metric in metrics]
    table = ["| run | " + " | ".join(f"{metric}, {kind}" for kind, metric in columns) + " | minutes | tokens |"]
    table.append("|---|" + "---|" * (len(columns) + 2))
    for job in jobs:
        summary = job.summary(runs)
        if summary is None:
            continue
        parts = {"all": summary["eval"]} | summary["by"].get(group, {})
        for phase in ("before", "after"):
            cells = [cell(parts.get(kind, {}).get(phase), metric) for kind, metric in columns]
            cost = (
                [f"{summary['wall_s'] / 60:.0f}", str(sum(summary["tokens"].values()))]
                if phase == "after"
                else ["", ""]
            )
            name = f"{job.row}, seed {summary['seed']}, {phase}"
            if any(one != "-" for one in cells):
                table.append(f"| {name} | " + " | ".join([*cells, *cost]) + " |")
    return table


def plot(jobs: list[Job], runs: Path, path: Path) -> None:
    """Draw the multiplier of HIPO over the updates, and the moving average of r_sys for every arm."""
    figure = Figure(figsize=(10, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, arm in enumerate(HIPO):
        for job in (job for job in jobs if job.row == arm and job.summary(runs)):
            multipliers, averages = curves(runs / job.place)
            right.plot(range(2, len(averages) + 2), averages, color=f"C{number}", label=arm)
            if arm == "hipo":
                left.plot(range(1, len(multipliers) + 1), multipliers, color=f"C{number}", label=arm)
    left.set(xlabel="update", ylabel="lambda")
    right.set(xlabel="update", ylabel="moving average of r_sys, training", ylim=(0, 1))
    named = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))  # one line for the seeds of an arm
    right.legend(list(named.values()), list(named), fontsize=8)
    figure.savefig(path)


def missing(part: str, data: Path | None) -> str:
    """Say which file is missing for a part of the comparison, and how to get it. Empty if none is."""
    if part != "pact" and data is None:
        return f"{part} needs --data"
    fetched = {MODEL: "make smollm2"} | ({ENCODER: "make minilm"} if part == "hipo" else {})
    for folder, command in fetched.items():
        if not folder.is_dir():
            return f"{folder} is missing; run: {command}"
    files = [file for _, file, *_ in SUITES.values() if file] if part == "baselines" else ["verih/test.json"]
    absent = [] if data is None or part == "pact" else [file for file in files if not (data / file).exists()]
    return (
        f"--data={data} has no {', '.join(absent)}; docs/hif.md and docs/evaluation.md say where to get them"
        if absent
        else ""
    )


def above_0(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the runs; those that are finished are not repeated")
    parser.add_argument("part", choices=("baselines", "pact", "hipo"))
    parser.add_argument("--data", type=Path, help="the folder with the benchmarks")
    parser.add_argument("--seeds", type=above_0, default=2, help="number of seeds of an arm")
    parser.add_argument("--limit", type=above_0, default=100, help="items of a suite, for baselines")
    parser.add_argument("--plot", type=Path, help="a picture of the runs of hipo")
    parser.add_argument("--jobs", type=above_0, default=1, help="number of runs at a time")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    options = parser.parse_intermixed_args()
    runs = options.runs.absolute()
    if problem := missing(options.part, options.data):
        parser.error(problem)
    if options.part == "pact":
        cold, jobs = pact(runs, options.seeds)
        ready = cold.run(runs, for_cold_start(options.overrides))
    elif options.part == "hipo":
        own, cold, jobs = hipo(runs, options.seeds)
        ready = prepare(own, cold, runs, options.data.absolute(), options.overrides)
    else:
        ready, jobs = True, baselines(runs, options.data.absolute(), options.limit)
    if not ready:
        sys.exit("the arms begin with the checkpoint of the cold start, so none was run")
    with ThreadPoolExecutor(options.jobs) as pool:
        good = list(pool.map(lambda job: job.run(runs, options.overrides), jobs))
    if options.part == "pact":
        print("\n".join(rows([cold, *jobs], runs, "hops", ("1", "2", "3", "4"), ("solve_rate",))))
    elif options.part == "hipo":
        print("\n".join(rows([cold, *jobs], runs, "kind", ("conflict", "aligned"), ("r_sys", "r_user"))))
        if options.plot is not None:
            plot(jobs, runs, options.plot)
    else:
        print("| suite | metric | " + " | ".join(SAMPLING) + " | items |\n|---|---|---|---|---|")
        for suite, (*_, metrics) in SUITES.items():
            for metric in metrics:
                found_ = [Job("", f"{suite}-{how}/all", []).summary(runs) for how in SAMPLING]
                cells = [cell(one["eval"]["after"] if one else None, metric) for one in found_]
                items = next((one["eval"]["after"][metric]["n"] for one in found_ if one), "-")
                print(f"| {suite} | {metric} | " + " | ".join(cells) + f" | {items} |")
    sys.exit(0 if all(good) else 1)  # what failed has been printed; the tables show the rest


if __name__ == "__main__":
    main()
