"""Sweeps whose jobs SLURM does (hardware=slurm): followed, found again, and begun again where a machine breaks.

Stand-ins for SLURM's commands run the real batch scripts. The worker of a run is a stand-in that waits for a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_several_processes import ROOT
from tests.support.slurm_stand_in import install, lose

WORKER = """
import os, socket, sys, time
from agentrl.store.run import RunDirectory
run = RunDirectory(sys.argv[1])
seed = run.config().seed
with open(f"{run.path}.starts", "a") as file: file.write("x")
run.set_status("running", pid=os.getpid(), host=socket.gethostname())
run.append(run.metrics_path, {"step": 3, "reward": 0.25})
while not os.path.exists(f"{os.environ['AGENTRL_TEST_CLUSTER']}/go-{seed}"): time.sleep(0.05)
if seed == 5:
    run.set_status("failed", error="ValueError: poisoned")
    sys.exit(2)
value = {"mean": 0.5, "lo": 0.4, "hi": 0.6, "n": 6}
run.write_json(run.summary_path, {"status": "completed", "algo": "sft", "model": "tiny", "bench": "minihop",
    "seed": seed, "steps": 4, "wall_s": 1.0, "tokens": {"seen": 1}, "eval": {"after": {"solve_rate": value}}, "by": {}})
run.set_status("completed")
"""
PATIENCE = """
import os
if "WORKER" in os.environ:
    import sys
    import agentrl.runner.follow, agentrl.runner.launch, agentrl.store.slurm_queue
    agentrl.runner.follow.GONE_S, agentrl.runner.follow.EVERY_S, agentrl.store.slurm_queue.EVERY_S = 2.0, 0.1, 0.2
    command = [sys.executable, "-c", os.environ["WORKER"]]
    agentrl.runner.launch.worker_command = lambda run, config: [*command, str(run.path)]
"""
SLURM = ("hardware=slurm", "hardware.device=cpu", "hardware.bf16=false", "hardware.processes=1", "algo=sft")


class Cluster:
    """A sweep beside the stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        install(folder, ROOT)
        (folder / "sitecustomize.py").write_text(PATIENCE)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        own = {"PATH": path, "AGENTRL_TEST_CLUSTER": str(folder), "PYTHONPATH": f"{folder}:{ROOT}", "WORKER": WORKER}
        self.environment = os.environ | own

    def end(self) -> None:
        """End what is left of the jobs."""
        for file in self.folder.glob("*.manager"):
            with suppress(ProcessLookupError):
                os.killpg(int(file.read_text()), signal.SIGKILL)

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agentrl", "-m", *SLURM, *overrides]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def let(self, *seeds: int) -> None:
        for seed in seeds:
            (self.folder / f"go-{seed}").touch()

    def submitted(self) -> int:
        return len(list(self.folder.glob("*.job")))

    def statuses(self) -> dict[int, dict[str, Any]]:
        files = self.folder.glob("runs/*/[!.]*/status.json")
        return {int(file.parent.name.split("-")[0][1:]): json.loads(file.read_text()) for file in files}

    def running(self) -> set[int]:
        return {seed for seed, status in self.statuses().items() if status["status"] == "running"}

    def jobs(self) -> dict[int, dict[str, Any]]:
        """The record of each job, by its seed."""
        (folder,) = self.folder.glob("runs/sweeps/*")
        found = [json.loads(file.read_text()) for file in (folder / "jobs").glob("*.json")]
        return {int(next(one for one in job["overrides"] if "seed=" in one)[5:]): job for job in found}

    def starts(self) -> dict[int, int]:
        files = self.folder.glob("runs/*/*.starts")
        return {int(file.name.split("-")[0][1:]): file.stat().st_size for file in files}


def wait(until: Callable[[], object], process: subprocess.Popen[str], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            raise AssertionError("".join(process.communicate()))
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path)
    yield one
    one.end()


@pytest.mark.slow
def test_jobs_are_followed_and_a_lost_one_begins_again(cluster: Cluster) -> None:
    process = cluster.start("seed=0,1,5")
    wait(lambda: cluster.running() == {0, 1, 5}, process)
    wait(lambda: {job["state"] for job in cluster.jobs().values()} == {"running"}, process)
    number = cluster.jobs()[1]["slurm"]
    lose(cluster.folder, number)
    cluster.let(0, 5)
    wait(lambda: cluster.starts().get(1) == 2, process)
    cluster.let(1)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1, out + err  # seed 5 fails
    states = {seed: (job["state"], job["tries"]) for seed, job in cluster.jobs().items()}
    assert states == {0: ("completed", 1), 1: ("completed", 2), 5: ("failed", 1)}
    assert cluster.starts() == {0: 1, 1: 2, 5: 1} and cluster.submitted() == 4
    assert f"SLURM job {number} is lost" in out and "poisoned" in err and "Traceback" not in out + err
    assert "[3/3]" in out and "running: seed=0  step 3  reward 0.250" in out


@pytest.mark.slow
def test_the_command_may_leave_and_come_back_and_values_may_join(cluster: Cluster) -> None:
    process = cluster.start("seed=0,1")
    wait(lambda: cluster.running() == {0, 1}, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130 and "Traceback" not in out + err
    assert "2 jobs go on in SLURM" in out and "scancel 101 102" in out.replace("\n", " ")
    process = cluster.start("seed=0,1")
    wait(lambda: "running" in {job["state"] for job in cluster.jobs().values()}, process)
    cluster.let(0, 1)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert cluster.submitted() == 2 and cluster.starts() == {0: 1, 1: 1}  # they were found again
    cluster.let(2)
    process = cluster.start("seed=0,1,2")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert cluster.submitted() == 3 and cluster.starts() == {0: 1, 1: 1, 2: 1}  # the finished ones did not begin
    assert {job["state"] for job in cluster.jobs().values()} == {"completed"} and "3 of 3 completed" in out
