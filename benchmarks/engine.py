"""How fast a training step is: agentrl's engines beside stock TRL, the same work in one process, in turns.

    python benchmarks/engine.py                        # every CPU workload, medians of 3 rounds
    python benchmarks/engine.py update-300 slow-tools --rounds 1 --compare benchmarks/engine.jsonl  # slower than then?
    python benchmarks/engine.py --device cuda qwen3-0.6b row-65k
    python benchmarks/engine.py --device cuda qwen3-0.6b --profile  # the kernels that take the most time
    python benchmarks/engine.py --model DIR checkpoint # a checkpoint of your own

On a CPU every arm plays a round in turn, so that what else the machine does falls on all alike. On a GPU one arm plays
after the other, because its memory has room for one. A round is one rollout batch. Ratios are medians over rounds of
(seconds of the first arm of the row / seconds of the arm). Peak memory is what an arm needs beyond the loaded model;
on a CPU each is measured in a process of its own. MFU counts the operations on distinct tokens alone, over those that
the tensor cores could do; "plan" is what `agentrl plan` computes for the arm. Results go to the file of --out, a line
for each workload, beside the commit. --compare holds each ratio of sampling or update beside the last one in such a
file. The exit code is 1 if one is 30% lower: on a busy machine (see `load` in the file) a single round is up to 25%
off.

slow-tools plays 64 episodes whose tools take 0.2 s each. Its first arm is not TRL, but a loop with a barrier: it has
the sampler of agentrl, no turn begins before a round of turns and tools is done, and tools run one by one, as in TRL.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from engine_arms import BARRIER, Arm, Workload
from made_up import Lengths

from agentrl.cost.gpus import GPUS

GRPO = (("trl", "grpo", None), ("padded", "grpo", "padded"), ("packed", "grpo", "packed"))
PACT = (("padded", "pact", "padded"), ("packed", "pact", "packed"), ("packed grpo", "grpo", "packed"))
SAMPLING = (("trl", "grpo", None), ("agentrl", "grpo", "packed"))
TOOLHOP = Lengths(prompt=1500, completion=400, turns=6)
SHORT = Lengths(prompt=300, completion=90, turns=1)
TURNS = Lengths(prompt=300, completion=340, turns=6)
WAITING = (("barrier", "grpo", BARRIER), ("agentrl", "grpo", "packed"))

# name: the work, and its arms (name, algo, engine; no engine means stock TRL)
WORKLOADS = {
    "update-300": (Workload("tiny", SHORT, prompts=4), GRPO),
    "update-toolhop": (Workload("25m", TOOLHOP, prompts=2), GRPO),
    "pact-300": (Workload("tiny", replace(SHORT, turns=3, completion=120), prompts=5), PACT),
    "pact-toolhop": (Workload("25m", TOOLHOP, prompts=5), PACT),
    "sampling-300": (Workload("tiny", TURNS, prompts=4, sampled=True), SAMPLING),
    "step-toolhop": (Workload("25m", TOOLHOP, prompts=2, sampled=True), SAMPLING),
    "slow-tools": (Workload("tiny", Lengths(300, 170, 3), prompts=8, sampled=True, tool_seconds=0.2), WAITING),
    **{
        f"length-{size}": (Workload("tiny", Lengths(size, size // 2, 2), prompts=2), GRPO[1:])
        for size in (256, 512, 1024, 2048, 4096)
    },
    "checkpoint": (Workload("", Lengths(200, 120, 2), prompts=2, rollouts=4), GRPO),
}
COMPILED = ("compiled", "grpo", "compiled")
ON_GPU = (*GRPO, COMPILED)
ON_CUDA = Workload("qwen3-0.6b", TOOLHOP, prompts=8, together=4, device="cuda", bf16=True)
LARGE = replace(ON_CUDA, checkpointing=True)
CUDA = {
    "qwen3-0.6b": (ON_CUDA, ON_GPU),
    "step-0.6b": (replace(ON_CUDA, prompts=4, sampled=True), (*SAMPLING, COMPILED)),
    "pact-0.6b": (replace(ON_CUDA, prompts=10, together=5), PACT),
    "qwen3-1.7b": (replace(LARGE, model="qwen3-1.7b"), ON_GPU),
    "qwen3-4b": (replace(LARGE, model="qwen3-4b", prompts=2, together=1), ON_GPU[2:]),
    "row-16k": (replace(LARGE, budget=70_000, lengths=Lengths(8_000, 1_000, 2), prompts=1, together=1), ON_GPU[2:]),
    "row-65k": (replace(LARGE, budget=70_000, lengths=Lengths(33_000, 4_000, 2), prompts=1, together=1), ON_GPU[2:]),
}
PEAK = 989e12  # dense bfloat16 operations a second of an H100, by its data sheet
RATIOS = ("sampling", "update", "step")  # of what, against the first arm
FALL = 0.7  # a ratio below this share of an earlier one is a regression
PARTS = ("sampling", "scoring", "forward", "backward")


def measure(name: str, work: Workload, arms: Any, rounds: int, out: Path) -> dict[str, Any]:
    """Seconds of each part of a step in each arm (medians), tokens forwarded, and ratios to the first arm."""
    played = one_by_one if work.device == "cuda" else in_turn
    with contextlib.redirect_stdout(io.StringIO()):
        found = played(work, arms, rounds, out)
    seen = {arm: rows for arm, (rows, _) in found.items()}
    first = next(iter(seen))
    result: dict[str, Any] = {"workload": name, "rounds": rounds, "arms": {}}
    for arm, rows in seen.items():
        medians = {part: statistics.median(row[part] for row in rows) for part in (*PARTS, "step")}
        result["arms"][arm] = {
            "seconds": {part: round(value, 4) for part, value in medians.items()},
            **found[arm][1],
            "update": round(ratio(seen[first], rows, ("forward", "backward")), 3),
            "step": round(ratio(seen[first], rows, ("step",)), 3),
        }
        if work.sampled:
            result["arms"][arm]["sampling"] = round(ratio(seen[first], rows, ("sampling",)), 3)
    return result


Rows = list[dict[str, float]]  # of each round: seconds by part


def in_turn(work: Workload, arms: Any, rounds: int, out: Path) -> dict[str, tuple[Rows, dict[str, Any]]]:
    """Of each arm, its rounds and what else is known of it. All arms play a round before any plays the next."""
    built = {arm: Arm(work, algo, engine, out / arm) for arm, algo, engine in arms}
    found: dict[str, tuple[Rows, dict[str, Any]]] = {arm: ([], {}) for arm in built}
    for number in range(rounds + 1):  # the first warms up
        for arm, trainer in built.items():
            play(trainer, found[arm], warm=number > 0)
    return found


def one_by_one(work: Workload, arms: Any, rounds: int, out: Path) -> dict[str, tuple[Rows, dict[str, Any]]]:
    """The same, each arm played and freed before the next is built; with the peak of its memory, and its MFU."""
    found: dict[str, tuple[Rows, dict[str, Any]]] = {arm: ([], {}) for arm, _, _ in arms}
    for arm, algo, engine in arms:
        trainer = Arm(work, algo, engine, out / arm)
        before = torch.cuda.memory_allocated()
        for number in range(rounds + 1):
            play(trainer, found[arm], warm=number > 0)
        operations = trainer.update_operations()
        seconds = statistics.median(row["forward"] + row["backward"] for row in found[arm][0])
        found[arm][1].update(
            peak_mib=round((torch.cuda.max_memory_allocated() - before) / 2**20),
            mfu=round(operations / seconds / PEAK, 4),
            distinct_tokens_per_second=round(trainer.distinct_tokens() / seconds),
        )
        if engine is not None and (gpu := kind_of_gpu(torch.cuda.get_device_name())) is not None:
            found[arm][1]["plan"] = trainer.planned(gpu)
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def kind_of_gpu(name: str) -> str | None:
    """The entry of `agentrl plan` for a card, such as h100 for NVIDIA H100 80GB HBM3."""
    return next((kind for kind in sorted(GPUS, key=len, reverse=True) if kind in name.lower().replace(" ", "-")), None)


def play(trainer: Arm, found: tuple[Rows, dict[str, Any]], warm: bool) -> None:
    """Play a round; it counts if the arm is warm."""
    clock = trainer.run()
    found[1]["tokens"] = {part: clock.tokens[part] for part in PARTS if clock.tokens[part]}
    if warm:
        found[0].append({part: clock.seconds[part] for part in PARTS} | {"step": sum(clock.seconds.values())})


def profile(work: Workload, algo: str, engine: str | None, out: Path) -> str:
    """What a warm arm spends its time on: kernels of the GPU, then operations of the CPU, a line each."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with contextlib.redirect_stdout(io.StringIO()):
        arm = Arm(work, algo, engine, out)
        arm.run()
        alone = sum(arm.run().seconds.values())
        with torch.profiler.profile(activities=activities) as seen:
            arm.run()
    lines = [f"{alone:.3f} s without the profiler"]
    for kind, spent in (("device", "self_device_time_total"), ("cpu", "self_cpu_time_total")):
        found = [one for one in seen.key_averages() if str(one.device_type).endswith("CUDA") == (kind == "device")]
        costs = sorted(((getattr(one, spent), one.count, one.key[:80]) for one in found), reverse=True)
        whole = sum(cost for cost, _, _ in costs)
        lines.append(f"{kind}: {whole / 1e6:.3f} s")
        lines += [f"{us / whole:6.1%} {us / 1e3:9.1f} ms {count:7} x {key}" for us, count, key in costs[:14]]
    return "\n".join(lines)


def ratio(first: list[dict[str, float]], rows: list[dict[str, float]], parts: tuple[str, ...]) -> float:
    """How many times faster `rows` are than `first` in some parts: the median over rounds."""
    pairs = zip(first, rows, strict=True)
    return statistics.median(sum(a[p] for p in parts) / max(sum(b[p] for p in parts), 1e-9) for a, b in pairs)


def peak(work: Workload, algo: str, engine: str | None, out: Path) -> float:
    """MiB that one rollout batch needs beyond the model and its trainer. For a process that does nothing else."""
    with contextlib.redirect_stdout(io.StringIO()):
        arm = Arm(work, algo, engine, out)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        arm.run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peaks(name: str, arms: Any, options: list[str]) -> dict[str, float]:
    """Peak memory of every arm, each in a process of its own."""
    found = {}
    for arm, _, _ in arms:
        command = [sys.executable, __file__, name, "--peak", arm, *options]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise SystemExit(done.stderr)
        found[arm] = round(float(done.stdout.split()[-1]), 1)
    return found


def show(result: dict[str, Any]) -> None:
    """One line an arm."""
    first = next(iter(result["arms"]))
    print(f"\n{result['workload']} (medians of {result['rounds']} rounds; times faster than {first})")
    ratios = [kind for kind in RATIOS if kind in result["arms"][first]]
    heads = "".join(f"{part:>10}" for part in (*PARTS, "step")) + "".join(f"{f'{kind} x':>12}" for kind in ratios)
    print(f"{'arm':<14}{heads}   tokens  peak MiB")
    for arm, row in result["arms"].items():
        seconds = "".join(f"{row['seconds'][part]:>10.3f}" for part in (*PARTS, "step"))
        memory = f"{row['peak_mib']:>10.0f}" if "peak_mib" in row else ""
        if "mfu" in row:
            memory += f"  MFU {row['mfu']:.1%}, {row['distinct_tokens_per_second']:,} distinct tokens/s"
        if "plan" in row:
            memory += "  plan " + ", ".join(f"{part} {value:.2f}" for part, value in row["plan"].items())
        faster = "".join(f"{row[kind]:>12.2f}" for kind in ratios)
        print(f"{arm:<14}{seconds}{faster}{sum(row['tokens'].values()):>9}{memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join([*WORKLOADS, *CUDA]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="", help="directory of a checkpoint, for the workload 'checkpoint'")
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to add the results to")
    parser.add_argument("--compare", type=Path, help="such a file; exit with 1 if a ratio is 30%% below its last one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="name the costliest kernels of the last arm (CUDA)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    known = WORKLOADS | CUDA
    if unknown := set(asked.workloads) - set(known):
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    default = CUDA if asked.device == "cuda" else [name for name in WORKLOADS if name != "checkpoint"]
    slower = False
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.workloads or default:
            work, arms = known[name]
            work = replace(work, model=work.model or asked.model, device=asked.device)
            if not work.model:
                parser.error("the workload 'checkpoint' needs --model DIR")
            if asked.peak:
                algo, engine = next((algo, engine) for arm, algo, engine in arms if arm == asked.peak)
                print(peak(work, algo, engine, Path(folder)))
                return
            if asked.profile:
                print(f"\n{name}, {arms[-1][0]}: {profile(work, *arms[-1][1:], Path(folder))}")
                continue
            result = measure(name, work, arms, asked.rounds, Path(folder))
            if asked.memory and asked.device == "cpu":
                options = ["--device", asked.device, "--model", asked.model, "--threads", str(asked.threads)]
                for arm, mib in peaks(name, arms, options).items():
                    result["arms"][arm]["peak_mib"] = mib
            show(result)
            if asked.compare:
                slower |= compare(result, asked.compare)
            if asked.out:
                record(result, asked.out)
    sys.exit(int(slower))


def compare(result: dict[str, Any], file: Path) -> bool:
    """Print ratios beside the last ones in a file of results; whether one of them has fallen."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    earlier = [line for line in lines if line["workload"] == result["workload"]]
    if not earlier:
        print(f"{file} has no result of {result['workload']}")
        return False
    slower = False
    for arm, row in list(result["arms"].items())[1:]:
        then = earlier[-1]["arms"].get(arm, {})
        kind = next(kind for kind in RATIOS if kind in row)
        if kind in then:
            fell = row[kind] < FALL * then[kind]
            slower |= fell
            at = f"{then[kind]:.2f} at {earlier[-1]['commit']}"
            print(f"{arm}: {kind} {row[kind]:.2f} times faster, {at}{' - SLOWER' if fell else ''}")
    return slower


def record(result: dict[str, Any], out: Path) -> None:
    """Add a result to a file of JSON lines, with the commit and the machine it was measured on."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=Path(__file__).parent,
    )
    where = {
        "commit": git.stdout.strip(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),  # waiting or running processes, this one included
    }
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result | where) + "\n")


if __name__ == "__main__":
    main()
