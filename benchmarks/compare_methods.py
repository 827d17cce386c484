"""Compare finished runs by method: a Markdown table over seeds with 95% intervals.

    agentrl sweep=methods runs_dir=runs/methods
    python benchmarks/compare_methods.py runs/methods

Every run contributes one number per metric, its mean over the test items. The interval is Student's t over the seeds.
Differences between methods are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from agentrl.config.load import load_config
from agentrl.core.stats import Interval, seeds_interval

METRICS = ("solve_rate", "answer_correct", "solve_f1", "solve_p", "solve_r")


def cell(interval: Interval, sign: str = "") -> str:
    """Format an interval as `0.512 [0.480, 0.544]`."""
    return f"{interval.mean:{sign}.3f} [{interval.lo:{sign}.3f}, {interval.hi:{sign}.3f}]"


def main(runs: Path) -> None:
    """Print the tables of all completed runs under `runs`."""
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    settings: dict[str, dict[str, object]] = {}
    for path in sorted(runs.glob("*/*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["status"] != "completed":
            continue
        config = load_config(path.parent)
        if summary["seed"] in found[summary["algo"]]:
            sys.exit(f"{runs} has two runs of {summary['algo']} with seed {summary['seed']}; name a folder with one")
        found[summary["algo"]][summary["seed"]] = summary
        trainer = config.trainer
        own = {
            "learning rate": trainer.learning_rate,
            "updates": summary["steps"],
            "prompts a batch": trainer.prompts_per_batch,
            "rollouts a prompt": config.rollout.num_generations if summary["algo"] != "sft" else "-",
        }
        if settings.setdefault(summary["algo"], own) != own:
            sys.exit(f"{runs} has runs of {summary['algo']} with other settings; name a folder with one")
    if not found:
        sys.exit(f"no completed run under {runs}")

    print("| method | seeds | " + " | ".join(METRICS) + " |")
    print("|---|---|" + "---|" * len(METRICS))
    first = next(iter(next(iter(found.values())).values()))
    base = [f"{first['eval']['before'][metric]['mean']:.3f}" for metric in METRICS]
    print("| before training | - | " + " | ".join(base) + " |")
    for algo, by_seed in found.items():
        cells = [cell(seeds_interval([s["eval"]["after"][m]["mean"] for s in by_seed.values()])) for m in METRICS]
        print(f"| {algo} | {len(by_seed)} | " + " | ".join(cells) + " |")

    print("\n| difference, paired by seed | seeds | " + " | ".join(METRICS) + " |")
    print("|---|---|" + "---|" * len(METRICS))
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            seeds = sorted(set(found[one]) & set(found[other]))
            cells = []
            for metric in METRICS:
                gaps = [
                    found[one][s]["eval"]["after"][metric]["mean"] - found[other][s]["eval"]["after"][metric]["mean"]
                    for s in seeds
                ]
                cells.append(cell(seeds_interval(gaps, low=-1.0), "+"))
            print(f"| {one} - {other} | {len(seeds)} | " + " | ".join(cells) + " |")

    hops = sorted(first["by"]["hops"])
    print("\n| solve_rate by hops (test tasks) | ", end="")
    print(" | ".join(f"{n} ({first['by']['hops'][n]['after']['solve_rate']['n']})" for n in hops) + " |")
    print("|---|" + "---|" * len(hops))
    rates = {n: first["by"]["hops"][n]["before"]["solve_rate"]["mean"] for n in hops}
    print("| before training | " + " | ".join(f"{rates[n]:.3f}" for n in hops) + " |")
    for algo, by_seed in found.items():
        cells = [
            cell(seeds_interval([s["by"]["hops"][n]["after"]["solve_rate"]["mean"] for s in by_seed.values()]))
            for n in hops
        ]
        print(f"| {algo} | " + " | ".join(cells) + " |")

    for algo, by_seed in found.items():
        settings[algo]["tokens seen, mean"] = round(statistics.mean(s["tokens"]["seen"] for s in by_seed.values()))
    keys = list(next(iter(settings.values())))
    print("\n| method | " + " | ".join(keys) + " |")
    print("|---|" + "---|" * len(keys))
    for algo, values in settings.items():
        print(f"| {algo} | " + " | ".join(str(values[key]) for key in keys) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the finished runs")
    main(parser.parse_args().runs)
