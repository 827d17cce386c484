"""A launcher of Hydra's that loses the process of a job: the other jobs go on, and the lost one begins again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# seed 1 waits until it is killed, and again where there is no file `go`
WORKER = """
import os, socket, sys, time
from agentrl.store.run import RunDirectory
run = RunDirectory(sys.argv[1])
seed = run.config().seed
with open(f"{run.path}.starts", "a") as file: file.write("x")
run.set_status("running", pid=os.getpid(), host=socket.gethostname())
while seed == 1 and not os.path.exists("go"): time.sleep(0.05)
value = {"mean": 0.5, "lo": 0.4, "hi": 0.6, "n": 6}
run.write_json(run.summary_path, {"status": "completed", "algo": "sft", "model": "tiny", "bench": "minihop",
    "seed": seed, "steps": 4, "wall_s": 1.0, "tokens": {"seen": 1}, "eval": {"after": {"solve_rate": value}}, "by": {}})
run.set_status("completed")
"""
CUSTOM = """
import os
if "WORKER" in os.environ:
    import sys
    import agentrl.runner.launch
    command = [sys.executable, "-c", os.environ["WORKER"]]
    agentrl.runner.launch.worker_command = lambda run, config: [*command, str(run.path)]
"""


class Sweeping:
    """A sweep over three seeds."""

    def __init__(self, folder: Path, *launcher: str) -> None:
        self.folder = folder
        (folder / "sitecustomize.py").write_text(CUSTOM)
        own = {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "WORKER": WORKER}
        command = [sys.executable, "-m", "agentrl", "-m", "algo=sft", "seed=0,1,2", *launcher]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | own, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def jobs(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(file.read_text()) for file in self.folder.glob("runs/sweeps/*/jobs/*.json")]
        return {next(one for one in job["overrides"] if one.startswith("seed=")): job for job in found}

    def wait_for_worker(self) -> None:
        """Until the worker of seed 1 runs."""
        deadline = time.monotonic() + 400
        while not any(
            json.loads(file.read_text())["status"] == "running" for file in self.folder.glob("runs/*/s1-*/status.json")
        ):
            assert time.monotonic() < deadline and self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)

    def lose(self) -> None:
        """Kill the process of the job; the kernel ends its worker."""
        os.kill(self.jobs()["seed=1"]["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), "hydra_joblib_launcher"),
        (("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"), "hydra_submitit_launcher"),
    ],
)
def test_a_lost_job_begins_again(tmp_path: Path, launcher: tuple[str, ...], plugin: str) -> None:
    if find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed: pip install '.[sweepers]'")
    sweep = Sweeping(tmp_path, *launcher)
    sweep.wait_for_worker()
    sweep.lose()
    (tmp_path / "go").touch()
    out, err = sweep.process.communicate(timeout=500)
    assert sweep.process.returncode == 0, out + err
    assert "jobs are lost" in out and "3 of 3 completed" in out and "Traceback" not in err
    jobs = sweep.jobs()
    assert {job["state"] for job in jobs.values()} == {"completed"} and jobs["seed=1"]["tries"] == 2
    starts = {file.name[:2]: file.stat().st_size for file in tmp_path.glob("runs/*/*.starts")}
    assert starts["s1"] == 2 and starts["s0"] == 1


@pytest.mark.slow
def test_a_job_that_is_lost_each_time_fails(tmp_path: Path) -> None:
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra_submitit_launcher is not installed: pip install '.[sweepers]'")
    sweep = Sweeping(tmp_path, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    for tries in (1, 2, 3):
        deadline = time.monotonic() + 400
        while sweep.jobs().get("seed=1", {}).get("tries") != tries:
            assert time.monotonic() < deadline and sweep.process.poll() is None
            time.sleep(0.1)
        sweep.wait_for_worker()
        sweep.lose()
    out, err = sweep.process.communicate(timeout=500)
    assert sweep.process.returncode == 1, out + err
    assert "killed without a record" in err and "2 of 3 completed; repeat the command to do the other 1" in out
    starts = {file.name[:2]: file.stat().st_size for file in tmp_path.glob("runs/*/*.starts")}
    assert starts["s0"] == starts["s2"] == 1 and sweep.jobs()["seed=1"]["tries"] == 3
