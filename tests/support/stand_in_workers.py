"""Runs whose worker is a small script, to start, stop and resume them within seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentrl.store.run import RunDirectory

SIGNALS = [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP))]

# The command line, with `python -c WORKER RUN_DIR` instead of the real worker.
DRIVER = """
import os, sys
import agentrl.commands.cli, agentrl.runner.launch
agentrl.runner.launch.worker_command = lambda run, config: [sys.executable, "-c", os.environ["WORKER"], str(run.path)]
agentrl.commands.cli.main()
"""
# The same with a stand-in for torchrun: its processes have their own sessions, and it does not wait for them.
AGENT = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
sys.exit(1 if worker.wait() else 0)
"""
TORCHRUN = DRIVER.replace('"-c", os', '"-c", os.environ["AGENT"], "-c", os')
PRELUDE = """
import os, signal, sys, time
from agentrl.store.run import RunDirectory
run = RunDirectory(sys.argv[1])
open(str(run.path) + ".starts", "a").write("x")
"""
DIES_WITH_IT = "from agentrl.runner.launch import die_with_launcher; die_with_launcher()\n"
COMPLETES = PRELUDE + "with run.lock(): run.set_status('completed')"
CRASHES = PRELUDE + "run.set_status('running'); os.kill(os.getpid(), signal.SIGKILL)"
REFUSES = PRELUDE + "run.set_status('failed', error='bad'); sys.exit(2)"
WAITS = (
    PRELUDE
    + """
def stop(number, frame):
    open(str(run.path) + ".signals", "a").write(f"{number} ")
    time.sleep(float(os.environ.get("SAVING", "0")))
    run.set_status("interrupted")
    os._exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
run.set_status("running", pid=os.getpid())
time.sleep(60)
"""
)


def start(where: Path, worker: str, *overrides: str, driver: str = DRIVER, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", driver, *overrides],
        cwd=where,
        env=os.environ | {"WORKER": worker, "AGENT": AGENT} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def the_run(where: Path) -> RunDirectory:
    (status,) = where.glob("runs/*/[!.]*/status.json")
    return RunDirectory(status.parent)


def wait_until_running(where: Path) -> RunDirectory:
    deadline = time.time() + 30
    while time.time() < deadline:
        found = list(where.glob("runs/*/[!.]*/status.json"))
        if found and json.loads(found[0].read_text())["status"] == "running":
            return RunDirectory(found[0].parent)
        time.sleep(0.02)
    raise AssertionError("the worker did not start")


def wait_for(where: Path, name: str) -> None:
    deadline = time.time() + 30
    while not list(where.glob(f"runs/*/{name}")):
        assert time.time() < deadline, f"no {name} appeared"
        time.sleep(0.02)


def starts(run: RunDirectory) -> int:
    return len(Path(str(run.path) + ".starts").read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parallel(where: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Overrides and environment for two jobs at a time. joblib's processes use the stand-in for the worker too."""
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra_joblib_launcher is not installed: pip install '.[sweepers]'")
    (where / "sitecustomize.py").write_text(
        "import os, sys\nif 'WORKER' in os.environ:\n"
        "    import agentrl.runner.launch, agentrl.runner.start\n"
        "    agentrl.runner.start.check_reach = lambda config: []\n"  # hardware=gpu, where there is none
        "    command = [sys.executable, '-c', os.environ['WORKER']]\n"
        "    agentrl.runner.launch.worker_command = lambda run, config: [*command, str(run.path)]\n"
    )
    return ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), {"PYTHONPATH": str(where), "TMPDIR": str(where)}
