"""Kill parts of a run on two machines with SIGKILL at random moments, start it again, compare with an undisturbed run.

    python benchmarks/faults_nodes.py                      # 30 kills over both algorithms, an hour on two idle cores
    python benchmarks/faults_nodes.py --algos hipo --kills 4 --seed 3 --out /tmp/faults

The machines are two commands on the loopback. A part is a command, its torchrun or its training process, on either
machine. A trial passes if the kill ends everything within LIMIT_S, the same two commands then complete the run, and
its metrics, rollouts, evaluations and weights equal those of the undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults import RUNS, outcome, unsound

from agentrl.store.run import RunDirectory

LIMIT_S = 60.0  # from a kill until nothing of the run is left
PARTS = ("command", "torchrun", "worker")
ALGOS = ("pact", "hipo")


def start(algo: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the run on both machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"hardware.rendezvous=127.0.0.1:{free.getsockname()[1]}"
    given = [*RUNS[algo], f"runs_dir={folder}", "hardware.processes=2", "hardware.nodes=2", meeting]
    command = [sys.executable, "-m", "agentrl", *given]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return [subprocess.Popen([*command, f"hardware.node_rank={rank}"], stdout=log, stderr=log) for rank in range(2)]


def finish(machines: list[subprocess.Popen[bytes]], limit: float | None = None) -> list[int]:
    """Wait for both machines; return the exit codes."""
    return [machine.wait(timeout=limit) for machine in machines]


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []


def parts(machine: subprocess.Popen[bytes]) -> Iterator[tuple[str, int]]:
    """Yield the parts of a machine that exist now."""
    yield "command", machine.pid
    for torchrun in children(machine.pid):
        yield "torchrun", torchrun
        for worker in children(torchrun)[:1]:
            yield "worker", worker


def find_run(folder: Path) -> RunDirectory:
    """Return the one run in a folder, once its training processes have begun."""
    while True:
        for status in folder.glob("*/*/status.json"):
            if (run := RunDirectory(status.parent)).status()["status"] != "created":
                return run
        time.sleep(0.05)


def trial(algo: str, folder: Path, whole: RunDirectory, seconds: float, dice: random.Random) -> tuple[str, list[str]]:
    """Kill a part of a run, start it again; return what was killed and what is wrong."""
    machines = start(algo, folder)
    run = find_run(folder)
    time.sleep(dice.random() * seconds)
    rank, wanted = dice.randrange(2), dice.choice(PARTS)
    there = dict(parts(machines[rank]))
    part = wanted if wanted in there else max(there, key=PARTS.index)
    victim = f"{part} of machine {rank}"
    if machines[rank].poll() is not None:
        return f"{victim}, too late", ["ended before it could be killed"]
    os.kill(there[part], signal.SIGKILL)
    try:
        finish(machines, LIMIT_S)
    except subprocess.TimeoutExpired:
        for machine in machines:
            machine.send_signal(signal.SIGKILL)
        return victim, [f"something was left {LIMIT_S:g} s after the kill"]
    wrong = unsound(run)
    if (codes := finish(start(algo, folder))) != [0, 0]:
        return victim, [*wrong, f"started again, the machines ended with {codes}"]
    got = outcome(run)
    return victim, wrong + [f"{name} differs" for name, digest in outcome(whole).items() if got.get(name) != digest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", choices=sorted(RUNS), default=list(ALGOS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="agentrl-faults-"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    dice, passed, made = random.Random(arguments.seed), 0, 0
    for place, algo in enumerate(arguments.algos):
        machines = start(algo, out / algo)
        whole, began = find_run(out / algo), time.perf_counter()
        assert finish(machines) == [0, 0], (out / f"{algo}.log").read_text(encoding="utf-8")
        seconds = time.perf_counter() - began
        for number in range(arguments.kills * (place + 1) // len(arguments.algos) - made):
            victim, wrong = trial(algo, out / f"{algo}-{number}", whole, 0.9 * seconds, dice)
            made, passed = made + 1, passed + (wrong == [])
            print(f"{algo} {number + 1}: {victim}: {'; '.join(wrong) or 'equal'}", flush=True)
    print(f"{passed} of {made} runs that were started again equal the undisturbed one; {out}")
    return 0 if passed == made else 1


if __name__ == "__main__":
    sys.exit(main())
