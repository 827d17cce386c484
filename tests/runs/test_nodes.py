"""Two machines on the loopback train one run: the same command on each, to the weights of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from agentrl.store.run import RunDirectory
from tests.runs.test_several_processes import ROOT

FEW = (
    *("bench.test_tasks=3", "trainer.max_steps=2", "trainer.save_steps=1", "trainer.prompts_per_batch=2"),
    *("trainer.minibatch_prompts=2", "rollout.num_generations=4", "hardware.processes=2", "hardware.threads=1"),
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def machines(*overrides: str, apart: tuple[Path, ...] = ()) -> list[subprocess.Popen[str]]:
    """The command on two machines; `apart`: each has a runs_dir of its own."""
    command = [sys.executable, "-m", "agentrl", *FEW, *overrides, "hardware.nodes=2"]
    command.append(f"hardware.rendezvous=127.0.0.1:{free_port()}")
    folders = [f"runs_dir={folder}" for folder in apart]
    return [
        subprocess.Popen(
            [*command, f"hardware.node_rank={rank}", *folders[rank : rank + 1]],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def finish(commands: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    said = [command.communicate(timeout=300)[0] for command in commands]
    return [command.returncode for command in commands], said


def the_run(where: Path) -> RunDirectory:
    (status,) = where.glob("*/[!.]*/status.json")
    return RunDirectory(status.parent)


def scripted(where: Path, nodes: int, *overrides: str) -> dict[str, Any]:
    """Weights and log of training on scripted rollouts: in one process, or in one on each of two machines."""
    port, running = free_port(), []
    for rank in range(nodes):
        torchrun = [f"--nnodes={nodes}", f"--node_rank={rank}", "--nproc_per_node=1"]
        torchrun += ["--master_addr=127.0.0.1", f"--master_port={port}"]
        command = ["-m", "torch.distributed.run", *torchrun, "-m", "tests.support.scripted_training"]
        command += [str(nodes), str(where), *overrides]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([sys.executable, *command], env=environment))
    assert [one.wait(timeout=300) for one in running] == [0] * nodes
    result: dict[str, Any] = json.loads((where / f"{nodes}.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["pact", "hipo"])
def test_two_machines_make_the_updates_of_one_process(algo: str, tmp_path: Path) -> None:
    # Adam makes much of the rounding of small gradients; the rate keeps the two apart by it alone.
    one, two = (scripted(tmp_path, nodes, f"algo={algo}", "trainer.learning_rate=1e-4") for nodes in (1, 2))
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-5)
    assert one["log"][0]["grad_norm"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["pact", "hipo"])
def test_the_same_command_on_each_machine_trains_one_run(algo: str, tmp_path: Path) -> None:
    runs = f"runs_dir={tmp_path / 'two'}"
    codes, (first, second) = finish(machines(f"algo={algo}", runs))
    assert codes == [0, 0], first + second
    run = the_run(tmp_path / "two")
    assert run.status()["status"] == "completed" and "Results:" in first and second.strip() == ""
    here = [sys.executable, "-m", "agentrl", *FEW, f"algo={algo}", f"runs_dir={tmp_path / 'one'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(here, env=environment, check=True, capture_output=True, timeout=300)
    other = the_run(tmp_path / "one")
    assert other.path.name == run.path.name  # nodes change no result
    assert other.read_metrics() == run.read_metrics() and other.items() == run.items()
    ours, theirs = (load_file(one.path / "model" / "model.safetensors") for one in (run, other))
    assert all(ours[name].equal(weights) for name, weights in theirs.items())


@pytest.mark.slow
def test_machines_without_a_common_disk_are_refused(tmp_path: Path) -> None:
    codes, said = finish(machines("algo=grpo", apart=(tmp_path / "a", tmp_path / "b")))
    assert 0 not in codes
    assert "is not the same directory on all hardware.nodes=2 machines" in said[0] + said[1]


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_either_machine_saves_and_ends_both(told: int, tmp_path: Path) -> None:
    many = ("algo=grpo", "trainer.max_steps=40", "eval.before=false", "eval.after=false", f"runs_dir={tmp_path}")
    running = machines(*many)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/*/metrics.jsonl")):
        assert time.time() < deadline
        time.sleep(0.1)
    running[told].send_signal(signal.SIGUSR1)
    codes, said = finish(running)
    run = the_run(tmp_path)
    assert run.status()["status"] == "interrupted", said
    assert codes == [130, 130], said
    saved = len(run.read_metrics())
    assert (run.checkpoints_dir / f"checkpoint-{saved}").is_dir() and 0 < saved < 40
