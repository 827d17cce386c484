"""Several processes of a CPU make the same training as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_runs import lines, only_run, run

ROOT = Path(__file__).resolve().parents[2]


def start(processes: int, script: str, *arguments: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", f"tests.support.{script}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "terms"),
    [
        ("pact", ("loss/sft",)),
        ("luffy", ("loss/expert", "expert/share")),
        ("srft", ("loss/expert", "loss/sft", "expert/weight")),
    ],
)
def test_two_processes_make_the_updates_of_one(algo: str, terms: tuple[str, ...], tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        start(processes, "scripted_training", str(processes), str(tmp_path), f"algo={algo}")
        results.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    one, two = results
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-5)
    for name in ("loss", "grad_norm", "loss/rl", "reward", "solve_rate", "tools/calls", *terms):
        first, second = ([line[name] for line in result["log"][:2]] for result in results)
        assert len(first) == 2 and first == pytest.approx(second, rel=1e-4, abs=1e-6), name
    assert one["log"][0]["grad_norm"] > 0.01 and one["log"][0][terms[0]] != 0


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hipo", "gdpo"])
def test_two_processes_normalise_the_two_sides_as_one_does(algo: str, tmp_path: Path) -> None:
    """GDPO's mean and deviation are those of the whole batch, not those of a process."""
    results = []
    for processes in (1, 2):
        start(processes, "scripted_training", str(processes), str(tmp_path), f"algo={algo}", "dual.initial=2")
        results.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    one, two = results
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-5)
    for name in ("loss", "grad_norm", "reward", "r_sys", "lambda/sys"):
        first, second = ([line[name] for line in result["log"][:2]] for result in results)
        assert len(first) == 2 and first == pytest.approx(second, rel=1e-4, abs=1e-6), name
    assert one["log"][0]["grad_norm"] > 0.01


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one_on_traces_too(tmp_path: Path) -> None:
    """The budget cuts the update of a process into pieces, of which the two need different numbers."""
    logs = []
    for processes in (1, 2):
        runs = tmp_path / str(processes)
        batch = (
            "trainer.prompts_per_batch=6",
            "trainer.minibatch_prompts=6",
            "trainer.tokens_per_batch=500",
            "trainer.max_steps=2",
        )
        run(runs, "algo=sft", *batch, "eval.before=false", "eval.after=false", f"hardware.processes={processes}")
        logs.append(lines(only_run(runs) / "metrics.jsonl"))
    for name in ("loss/total", "grad_norm", "entropy", "mean_token_accuracy", "tokens"):
        one, two = ([line[name] for line in log] for log in logs)
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6), name
    assert logs[0][0]["grad_norm"] > 0.01
