"""SLURM's commands on this machine, whose loopback addresses are the machines of the cluster, and a vLLM for it.

python -m tests.support.slurm_stand_in COMMAND ARGUMENT..., in a cluster folder that AGENTRL_TEST_CLUSTER names.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "vllm")
CLUSTER = Path(os.environ.get("AGENTRL_TEST_CLUSTER", "."))


def install(folder: Path, root: Path) -> None:
    """Put the commands into `folder`/bin."""
    (folder / "bin").mkdir(parents=True)
    for name in COMMANDS:
        script = folder / "bin" / name
        start = f"PYTHONPATH={root}:$PYTHONPATH exec {sys.executable} -m tests.support.slurm_stand_in {name}"
        script.write_text(f'#!/bin/bash\n{start} "$@"\n')
        script.chmod(0o755)


def option(arguments: list[str], name: str, default: str = "") -> str:
    return next((one.partition("=")[2] for one in reversed(arguments) if one.startswith(f"--{name}=")), default)


def sbatch(arguments: list[str]) -> int:
    """Give the job a number and leave it to a process of its own."""
    assert arguments[0] == "--parsable"
    number = str(len(list(CLUSTER.glob("*.job"))) + 101)
    (CLUSTER / f"{number}.job").write_text(arguments[1])
    command = [sys.executable, "-m", "tests.support.slurm_stand_in", "job", number]
    nothing = subprocess.DEVNULL
    subprocess.Popen(command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)
    print(number)
    return 0


def job(number: str) -> int:
    """Run a batch script to its end, and again whenever it asks for that."""
    script = Path((CLUSTER / f"{number}.job").read_text())
    lines = script.read_text().splitlines()
    options = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    nodes = int(option(options, "nodes"))
    environment = os.environ | {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NODELIST": ",".join(f"127.0.0.{machine + 1}" for machine in range(nodes)),
    }
    (CLUSTER / f"{number}.manager").write_text(str(os.getpid()))
    requeued, starts = CLUSTER / f"{number}.requeued", 0
    while starts == 0 or requeued.exists():
        requeued.unlink(missing_ok=True)
        starts += 1
        with Path(option(options, "output").replace("%j", number).replace("%%", "%")).open("a") as log:
            process = subprocess.Popen(["bash", str(script)], env=environment, stdout=log, stderr=log)
            (CLUSTER / f"{number}.pid").write_text(str(process.pid))
            process.wait()
        (CLUSTER / f"{number}.codes").open("a").write(f"{process.returncode} ")
    (CLUSTER / f"{number}.done").touch()
    return 0


def srun(arguments: list[str]) -> int:
    """A task on each machine of the list. Signals are passed on, a task that fails ends the others, and nothing that a
    task has started is left after it.
    """
    own = next(place for place, word in enumerate(arguments) if not word.startswith("--"))
    arguments, command = arguments[:own], arguments[own:]
    count, output = int(option(arguments, "ntasks")), option(arguments, "output")
    assert len(option(arguments, "nodelist").split(",")) == count == int(option(arguments, "nodes"))
    log: Any = Path(output.replace("%%", "%")).open("a") if output else None  # noqa: SIM115
    tasks = [
        subprocess.Popen(
            command, env=os.environ | {"SLURM_NODEID": str(rank)}, stdout=log, stderr=log, start_new_session=True
        )
        for rank in range(count)
    ]

    def pass_on(number: int, _: Any) -> None:
        for task in tasks:
            with suppress(ProcessLookupError):
                task.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, pass_on)
    while any(task.poll() is None for task in tasks):
        if "--kill-on-bad-exit=1" in arguments and any(task.poll() for task in tasks):
            time.sleep(3)
            pass_on(signal.SIGTERM, None)
        time.sleep(0.1)
    for task in tasks:
        with suppress(ProcessLookupError):
            os.killpg(task.pid, signal.SIGKILL)
    return max(abs(task.returncode) for task in tasks)


def scontrol(arguments: list[str]) -> int:
    match arguments:
        case ["show", "hostnames", listed]:
            print(*listed.split(","), sep="\n")
        case ["requeue", number]:
            (CLUSTER / f"{number}.requeued").touch()
    return 0


def squeue(arguments: list[str]) -> int:
    """The jobs that are not done and whose machine is not broken (`lose`)."""
    assert arguments == ["--me", "--noheader", "--array", "--format=%i"]
    for file in sorted(CLUSTER.glob("*.job")):
        if not file.with_suffix(".done").exists() and not file.with_suffix(".lost").exists():
            print(file.stem)
    return 0


def lose(cluster: Path, number: str) -> None:
    """Break the machine of a job: all of its processes end before one can record it, and SLURM forgets the job."""
    manager = psutil.Process(int((cluster / f"{number}.manager").read_text()))
    family = [manager, *manager.children(recursive=True)]
    for one in family:
        one.suspend()
    for one in family:
        one.kill()
    (cluster / f"{number}.lost").touch()


def vllm(arguments: list[str]) -> int:
    """A server at the address that the script has chosen: a real vLLM, if AGENTRL_TEST_VLLM names a Python that has it,
    or a network of its own.
    """
    assert arguments[0] == "serve" and os.environ["VLLM_SERVER_DEV_MODE"] == "1"
    (CLUSTER / "vllm.pid").write_text(str(os.getpid()))
    if python := os.environ.get("AGENTRL_TEST_VLLM"):
        from tests.support.vllm_process import ENTRY, ON_A_CPU, SETTINGS

        command = [python, *ENTRY, "--model", *arguments[1:], *ON_A_CPU]
        os.execve(
            python, command, {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS
        )
    from tests.support.vllm_network import network

    where = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    with network(host=where["--host"], port=int(where["--port"])):
        signal.pause()
    return 0


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.exit(job(*rest) if name == "job" else globals()[name](rest))
