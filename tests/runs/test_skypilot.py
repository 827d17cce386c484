"""examples/skypilot.yaml: what it runs on each machine trains one run, and goes on after a preemption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs.test_nodes import FEW, ROOT, free_port, the_run

HERE = ("algo=grpo", *(key for key in FEW if not key.startswith("hardware.processes")), "eval.before=false")
CPU = ("hardware.device=cpu", "hardware.bf16=false")


def launch(folder: Path, *keys: str) -> list[subprocess.Popen[str]]:
    """The file's `run` section on two machines of one GPU, as SkyPilot starts it; the disk and the port are others."""
    task = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
    (disk,) = task["volumes"]
    port = str(free_port())
    script = task["run"].replace(disk, str(folder)).replace("29500", port)
    assert port in script and str(folder) in script
    own = folder / "bin"
    own.mkdir(exist_ok=True)
    (own / "agentrl").write_text(f'#!/bin/bash\nexec {sys.executable} -m agentrl "$@"\n')
    (own / "agentrl").chmod(0o755)
    machines = []
    for rank in range(task["num_nodes"]):
        told = {
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
            "SKYPILOT_NUM_GPUS_PER_NODE": "1",
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
            "RUN": " ".join([*HERE, *CPU, *keys]),
        }
        path = {"PATH": f"{own}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        out: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        machines.append(subprocess.Popen(["bash", "-c", script], env=os.environ | path | told, **out))
    return machines


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_preempted_machine_ends_the_run_and_the_next_launch_goes_on(tmp_path: Path) -> None:
    keys = ("trainer.max_steps=12", "trainer.save_steps=2", "eval.limit=2")
    machines = launch(tmp_path, *keys)
    deadline = time.time() + 300
    while not list(tmp_path.glob("runs/*/*/checkpoints/checkpoint-*")):
        assert time.time() < deadline and machines[0].poll() is None, machines[0].communicate()
        time.sleep(0.1)
    os.killpg(machines[1].pid, signal.SIGKILL)
    said = machines[0].communicate(timeout=150)[0]  # torchrun alone would wait five minutes
    run = the_run(tmp_path / "runs")
    assert machines[0].returncode != 0 and run.status()["status"] != "completed", said
    assert 2 <= len(run.read_metrics()) < 12
    again = [machine.communicate(timeout=300)[0] for machine in launch(tmp_path, *keys)]
    assert run.status()["status"] == "completed" and "resuming from" in again[0], again
    assert [row["step"] for row in run.read_metrics()] == list(range(1, 13)) and len(run.items()) == 2
