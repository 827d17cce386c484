"""Kill parts of a run of several processes at random moments, start it again, compare it with an undisturbed run.

    python benchmarks/faults_nodes.py                         # 30 kills over all shapes, an hour on two idle cores
    python benchmarks/faults_nodes.py --shapes served --algos hipo --kills 4 --seed 3 --out /tmp/faults
    python benchmarks/faults_nodes.py --per-run 5             # kill every run five times: in half the time

A shape is how the run is spread: over two processes of one machine, over two machines, or over two machines and a
vLLM server. The machines are commands on the loopback. The server is the tests' stand-in, which computes a turn from
its tokens and its seed alone, so runs can be equal; a real vLLM rounds differently in other company. A part is a
command, its torchrun or a training process on either machine, or the server.

A trial passes if each kill ends everything within LIMIT_S, the same commands then complete the run, and its metrics,
rollouts, evaluations and weights equal those of the undisturbed run, byte for byte. A killed server must also cost no
finished update: the newest checkpoint is the one of the last line of metrics.jsonl.
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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from faults import RUNS, outcome, unsound

from agentrl.store.checkpoints import step_of
from agentrl.store.run import RunDirectory, is_gone

LIMIT_S = 120.0  # from a kill until nothing of the run is left; most of it is for other work on the same cores
ROOT = Path(__file__).resolve().parents[1]
ALGOS = ("pact", "hipo")


@dataclass(frozen=True)
class Shape:
    """How a run is spread."""

    machines: int
    served: bool = False

    def parts(self) -> list[tuple[str, int]]:
        """Return what is killed, as often as it is named: kind, and number of its machine or process."""
        ranks = [("rank", rank) for rank in range(2)]
        if self.served:
            return [*ranks, *[("server", 0)] * 3]
        return [*ranks, *[(kind, machine) for kind in ("command", "torchrun") for machine in range(self.machines)]]


SHAPES = {"processes": Shape(machines=1), "machines": Shape(machines=2), "served": Shape(machines=2, served=True)}
# A server of its own is slow, so turns are short; and checkpoints are rare, so that a lost update would show.
SERVED = ("vllm.mode=server", "rollout.max_turn_tokens=8", "eval.before=false", "trainer.save_steps=4")


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Trial:
    """A run below `folder`, as its user sees it: commands on machines, and maybe a server."""

    def __init__(self, algo: str, shape: Shape, folder: Path) -> None:
        self._algo, self._shape, self.folder = algo, shape, folder
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.machines: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the server, if it does not run, and the command on every machine."""
        if self._shape.served and (self._server is None or self._server.poll() is not None):
            self._server = self._popen(["-m", "tests.support.vllm_network", str(self._port), *RUNS[self._algo]])
            while not self._answers():
                assert self._server.poll() is None, self.log()
                time.sleep(0.1)
        given = [*RUNS[self._algo], f"runs_dir={self.folder}", "hardware.processes=2"]
        given += [*SERVED, f"vllm.url=http://127.0.0.1:{self._port}"] if self._shape.served else []
        if self._shape.machines > 1:
            given += [f"hardware.nodes={self._shape.machines}", f"hardware.rendezvous=127.0.0.1:{free_port()}"]
        ranks = [[f"hardware.node_rank={rank}"] if self._shape.machines > 1 else [] for rank in range(len(self))]
        self.machines = [self._popen(["-m", "agentrl", *given, *rank]) for rank in ranks]

    def __len__(self) -> int:
        return self._shape.machines

    def _popen(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env=environment)

    @property
    def _log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    def log(self) -> str:
        """Return what the commands have printed."""
        return self._log.read_text(encoding="utf-8")

    def _answers(self) -> bool:
        with suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5))
        return False

    def finish(self, limit: float | None = None) -> list[int]:
        """Wait for the commands; return their exit codes."""
        return [machine.wait(timeout=limit) for machine in self.machines]

    def stop(self) -> None:
        """Kill what is left."""
        for process in [*self.machines, *([self._server] if self._server else [])]:
            process.kill()
            process.wait()

    def run(self) -> RunDirectory:
        """Return the run, once its training processes have begun, or have nothing left to do."""
        while True:
            for path in self.folder.glob("*/[!.]*/status.json"):
                status = (run := RunDirectory(path.parent)).status()
                if status["status"] == "running" and not is_gone(str(status["pid"]), str(status["host"])):
                    return run
                if status["status"] == "completed" and self.machines[0].poll() == 0:
                    return run
            assert self.machines[0].poll() is None, self.log()
            time.sleep(0.05)

    def kill(self, kind: str, number: int) -> bool:
        """Kill a part; return False if the run has ended before."""
        while all(machine.poll() is None for machine in self.machines):
            if pid := dict(self._parts()).get((kind, number)):
                os.kill(pid, signal.SIGKILL)
                return True
            time.sleep(0.05)  # torchrun and its processes start one after the other
        return False

    def _parts(self) -> Iterator[tuple[tuple[str, int], int]]:
        rank = 0
        for number, machine in enumerate(self.machines):
            yield ("command", number), machine.pid
            for torchrun in children(machine.pid):
                yield ("torchrun", number), torchrun
                for worker in children(torchrun)[: 2 // len(self)]:
                    yield ("rank", rank), worker
                    rank += 1
        if self._server is not None:
            yield ("server", 0), self._server.pid


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []


@contextmanager
def trying(algo: str, shape: str, folder: Path) -> Iterator[Trial]:
    """Start a run; at the end kill what is left."""
    folder.mkdir(parents=True)
    trial = Trial(algo, SHAPES[shape], folder)
    try:
        trial.start()
        yield trial
    finally:
        trial.stop()


def newest_checkpoint(run: RunDirectory) -> int:
    """Return the number of updates in the newest checkpoint, or 0."""
    return max((step_of(path) for path in run.checkpoints_dir.glob("checkpoint-*")), default=0)


def kill_once(trial: Trial, part: tuple[str, int], seconds: float) -> list[str] | None:
    """Kill a part, and start what has ended again; return what is wrong, or None if the run ended before."""
    run = trial.run()
    time.sleep(seconds)
    if not trial.kill(*part):
        return None
    try:
        trial.finish(LIMIT_S)
    except subprocess.TimeoutExpired:
        return [f"something was left {LIMIT_S:g} s after the kill"]
    wrong = unsound(run)
    done, kept = len(run.read_metrics()), newest_checkpoint(run)
    if part[0] == "server" and done != kept:
        wrong.append(f"{done} updates were finished, and the newest checkpoint holds {kept}")
    trial.start()
    return wrong


def complete(trial: Trial, whole: RunDirectory) -> list[str]:
    """Let the run end; return how it differs from the undisturbed one."""
    run = trial.run()
    if any(codes := trial.finish()):
        return [f"started again, the machines ended with {codes}: {trial.log()[-2000:]}"]
    got = outcome(run)
    return [f"{name} differs" for name, digest in outcome(whole).items() if got.get(name) != digest]


def campaign(shape: str, algo: str, kills: int, per_run: int, dice: random.Random, out: Path) -> int:
    """Make an undisturbed run, then kill others; print a line for each of those, and return how many kills passed."""
    with trying(algo, shape, out / "undisturbed") as trial:
        whole, began = trial.run(), time.perf_counter()
        assert not any(trial.finish()), trial.log()
        seconds = time.perf_counter() - began
    parts, made, passed, runs = SHAPES[shape].parts(), 0, 0, 0
    dice.shuffle(parts)
    while made < kills:
        runs, killed, wrong = runs + 1, [], []
        with trying(algo, shape, out / f"run-{runs}") as trial:
            while len(killed) < min(per_run, kills - made) and not wrong:
                part, moment = parts[(made + len(killed)) % len(parts)], dice.random() * seconds / per_run
                if (found := kill_once(trial, part, moment)) is None:
                    break  # the moment came after the end of the run
                wrong += found
                killed.append(f"{part[0]} {part[1]} after {moment:.1f} s")
            if killed and not wrong:
                wrong = complete(trial, whole)
        if killed:
            made, passed = made + len(killed), passed + (0 if wrong else len(killed))
            print(f"{shape:9} {algo:5} {', '.join(killed)}: {'; '.join(wrong) or 'equal'}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--algos", nargs="+", choices=sorted(RUNS), default=list(ALGOS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--per-run", type=int, default=1, help="how often one run is killed before it may end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="agentrl-faults-"))).absolute()
    begin, passed, made = time.perf_counter(), 0, 0
    pairs = [(shape, algo) for shape in arguments.shapes for algo in arguments.algos]
    for place, (shape, algo) in enumerate(pairs, start=1):
        kills = arguments.kills * place // len(pairs) - made
        dice = random.Random(f"{arguments.seed} {shape} {algo}")
        passed += campaign(shape, algo, kills, arguments.per_run, dice, out / f"{shape}-{algo}")
        made += kills
    print(
        f"{passed} of {made} kills led to the end of the undisturbed run ({time.perf_counter() - begin:.0f} s); {out}"
    )
    return 0 if passed == made else 1


if __name__ == "__main__":
    sys.exit(main())
