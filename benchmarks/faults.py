"""Kill runs with SIGKILL at random moments, resume them, and compare them with an undisturbed run.

    python benchmarks/faults.py                          # 30 moments over all algorithms, minutes on two cores
    python benchmarks/faults.py --algos pact --kills 8 --seed 3 --out /tmp/faults

Most kills happen inside a worker, at a random point of a random phase (evaluation, rollout, update, writing a
checkpoint, sealing it): a timer sends SIGKILL to its own process. The worker is a fork of this process, which has done
the slow imports already. The other kills hit real command lines: the worker, the parent or both are killed from
outside. A trial passes if the directory is sound after the kill, the same run then completes, and its metrics,
rollouts, evaluations and final weights equal those of the undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer

from agentrl.config.compose import compose
from agentrl.runner import work, worker
from agentrl.store import checkpoints
from agentrl.store.run import RunDirectory
from agentrl.trainers.grpo import AgentGRPOTrainer

TINY = (
    *("trainer.max_steps=6", "trainer.save_steps=2", "trainer.lr_schedule=linear", "trainer.warmup_steps=1"),
    *("rollout.num_generations=2", "rollout.max_turns=3", "hardware.threads=1", "eval.batch=2"),
)
SMALL_BATCH = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2")
SMALL_BENCH = ("bench.train_tasks=8", "bench.test_tasks=4")  # so an epoch ends within the run
# The smallest runs that cover everything that a resumed run must restore.
RUNS: dict[str, tuple[str, ...]] = {
    "sft": ("algo=sft", *SMALL_BATCH, *SMALL_BENCH, *TINY),
    "grpo": ("algo=grpo", "algo.kl_coef=0.01", *SMALL_BATCH, *SMALL_BENCH, *TINY),
    # Two updates of each rollout batch; the gate and the annealing advance.
    "pact": ("algo=pact", "trainer.prompts_per_batch=4", *SMALL_BATCH[1:], *SMALL_BENCH, *TINY),
    # A multiplier with memory, a reference model, and an evaluation that samples.
    "hipo": ("algo=hipo", "dual=pid", *SMALL_BATCH, *SMALL_BENCH, *TINY, "rollout.max_turns=1"),
}
# Where a worker is killed: a phase is the time of one call of this function (its owner and its name).
PHASES: dict[str, tuple[Any, str]] = {
    "evaluation": (work, "evaluate"),
    "rollout": (AgentGRPOTrainer, "_roll_out"),
    "update": (Trainer, "training_step"),
    "checkpoint": (Trainer, "_save_checkpoint"),
    "seal": (checkpoints, "seal"),
}
FROM_OUTSIDE = 5  # every fifth kill hits a real command line
VICTIMS = ("worker", "parent", "both")
Entries = dict[str, list[float]]  # phase -> seconds of each of its entries


@dataclass(frozen=True)
class Moment:
    """When to kill: `seconds` after phase `phase` is entered for the `entry`-th time (0 is the first)."""

    phase: str
    entry: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.phase} {self.entry + 1} + {self.seconds:.2f} s"


def fork_worker(run: RunDirectory, prepare: Callable[[], None]) -> int:
    """Do the run in a fork of this process, after `prepare()` there; return the exit code, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            log = os.open(f"{run.path}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            prepare()
            code = worker.main(run.path)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watch_phases(entered: Callable[[str, int], None], left: Callable[[str, float], None]) -> None:
    """In a worker: call `entered(phase, entry)` and `left(phase, seconds)` around every phase."""
    counts = dict.fromkeys(PHASES, 0)

    def around(phase: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entered(phase, counts[phase])
        counts[phase] += 1
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        left(phase, time.perf_counter() - begin)
        return result

    for phase, (owner, name) in PHASES.items():
        function = getattr(owner, name)
        wrapped = partial(around, phase, function)
        # A class attribute must bind to the instance, and a partial does not.
        setattr(owner, name, (lambda w: lambda *a, **k: w(*a, **k))(wrapped))


def measure(notes: Path) -> None:
    """Write the length of every phase as a line of `notes`."""

    def left(phase: str, seconds: float) -> None:
        with notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps([phase, seconds]) + "\n")

    watch_phases(lambda phase, entry: None, left)


def arm(moment: Moment) -> None:
    """Make this process kill itself at `moment`."""

    def entered(phase: str, entry: int) -> None:
        if (phase, entry) == (moment.phase, moment.entry):
            threading.Timer(moment.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    watch_phases(entered, lambda phase, seconds: None)


def new_run(algo: str, folder: Path) -> RunDirectory:
    """Make the run directory of `algo`'s tiny run below `folder`."""
    run = RunDirectory.create(compose([*RUNS[algo], f"runs_dir={folder}"]))
    assert run is not None, f"{folder} holds such a run already"
    return run


def undisturbed(algo: str, folder: Path) -> tuple[RunDirectory, Entries]:
    """Do the undisturbed run; return it and the length of each of its phases."""
    run, notes = new_run(algo, folder), folder / "phases.jsonl"
    code = fork_worker(run, partial(measure, notes))
    assert code == 0, Path(f"{run.path}.log").read_text(encoding="utf-8")
    entries: Entries = {}
    for line in notes.read_text(encoding="utf-8").splitlines():
        phase, seconds = json.loads(line)
        entries.setdefault(phase, []).append(seconds)
    return run, entries


def choose(entries: Entries, dice: random.Random) -> Moment:
    """Choose a random point of a random entry of a random phase."""
    phase = dice.choice(sorted(entries))
    entry = dice.randrange(len(entries[phase]))
    return Moment(phase, entry, dice.random() * entries[phase][entry])


def kill_inside(run: RunDirectory, moment: Moment) -> None:
    """Do the run until it is killed at `moment`."""
    code = fork_worker(run, partial(arm, moment))
    assert code == -signal.SIGKILL, f"not killed at {moment}: exit code {code}"


def kill_outside(algo: str, folder: Path, victim: str, seconds: float) -> RunDirectory:
    """Start the command line, and kill its `victim` `seconds` after its worker has recorded that it runs."""
    process = subprocess.Popen(command(algo, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status: dict[str, Any] = {}
    while status.get("status") != "running":
        time.sleep(0.02)
        assert process.poll() is None, "ended before it could be killed"
        for path in folder.glob("*/[!.]*/status.json"):
            run, status = RunDirectory(path.parent), json.loads(path.read_text(encoding="utf-8"))
    time.sleep(seconds)
    assert process.poll() is None, "ended before it could be killed"
    if victim in ("parent", "both"):
        process.kill()
    if victim in ("worker", "both"):
        os.kill(status["pid"], signal.SIGKILL)
    process.wait()
    return run


def command(algo: str, folder: Path) -> list[str]:
    """Return the command line of `algo`'s tiny run."""
    return [sys.executable, "-m", "agentrl", *RUNS[algo], f"runs_dir={folder}"]


def unsound(run: RunDirectory) -> list[str]:
    """Return what cannot be read in a run directory after a kill. Readers drop partial last lines, so these are
    sound.
    """
    found = []
    for path in [run.status_path, run.environment_path, *run.path.glob("summary.json")]:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            found.append(f"{path.name}: {error}")
    for path in run.path.glob("checkpoints/checkpoint-*"):
        if fault := checkpoints.find_damage(path):
            found.append(f"{path.name}: {fault}")
    return found


def outcome(run: RunDirectory) -> dict[str, str]:
    """Return digests of everything that must be equal: every record of the run, and its final weights."""
    files = ["metrics.jsonl", "rollouts.jsonl", "eval/before.jsonl", "eval/after.jsonl", "model/model.safetensors"]
    found = [run.path / name for name in files if (run.path / name).exists()]
    return {str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def trial(algo: str, reference: RunDirectory, entries: Entries, number: int, seed: int, folder: Path) -> str:
    """Kill and resume once and print a line; return '' if the results are equal, else what differs."""
    dice = random.Random(f"{seed} {algo} {number}")
    if number % FROM_OUTSIDE == FROM_OUTSIDE - 1:
        victim = VICTIMS[number // FROM_OUTSIDE % len(VICTIMS)]
        # A kill during the imports loses nothing. The phases start once the worker has recorded that it runs.
        seconds = dice.random() * sum(entries["update"])
        what = f"{victim} of a command line + {seconds:.2f} s"
        run = kill_outside(algo, folder, victim, seconds)
        faults = unsound(run)
        done = subprocess.run(command(algo, folder), capture_output=True, text=True, encoding="utf-8")
        code, output = done.returncode, done.stdout + done.stderr
    else:
        moment = choose(entries, dice)
        what, run = str(moment), new_run(algo, folder)
        kill_inside(run, moment)
        faults = unsound(run)
        code = fork_worker(run, lambda: None)
        output = Path(f"{run.path}.log").read_text(encoding="utf-8")
    expected, got = outcome(reference), outcome(run) if code == 0 else {}
    faults += [] if code == 0 else [f"resuming ended with {code}: {output[-2000:]}"]
    faults += [f"{name} differs" for name in expected if code == 0 and got.get(name) != expected[name]]
    print(f"{algo:6} kill {number + 1:2}  {what:38}  {'; '.join(faults) or 'equal'}", flush=True)
    return "; ".join(faults)


def campaign(algos: list[str], kills: int, seed: int, folder: Path) -> list[str]:
    """Spread `kills` over `algos`; return the faults, empty if there are none."""
    wrong = []
    for position, algo in enumerate(algos):
        reference, entries = undisturbed(algo, folder / algo / "undisturbed")
        for number in range(kills // len(algos) + (position < kills % len(algos))):
            wrong.append(trial(algo, reference, entries, number, seed, folder / algo / f"kill-{number + 1}"))
    return [text for text in wrong if text]


def main() -> None:
    """Run the campaign; exit with status 1 if a trial failed."""
    parser = argparse.ArgumentParser(description="Kill, resume, compare.")
    parser.add_argument("--algos", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where the runs go; a temporary folder if not given")
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        wrong = campaign(options.algos, options.kills, options.seed, options.out or Path(temporary))
    passed = options.kills - len(wrong)
    print(f"{passed} of {options.kills} resumed runs equal the undisturbed one ({time.perf_counter() - begin:.0f} s)")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
