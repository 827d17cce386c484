"""Jobs of a sweep that run side by side have their own GPUs. No GPU is needed: the tests check who gets which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentrl.runner import gpus
from agentrl.runner.gpus import reserve_gpus, visible_gpus
from tests.support.stand_in_workers import DRIVER, PRELUDE, parallel


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "EVERY_S", 0.02)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_jobs_take_the_gpus_in_turn_and_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a")
    said: list[str] = []
    got: list[list[str]] = []

    def third() -> None:
        with reserve_gpus(1, said.append) as mine:
            got.append(mine)

    with reserve_gpus(1, said.append) as first:
        with reserve_gpus(1, said.append) as second:
            assert (first, second, said) == (["3"], ["GPU-8a"], [])
            waits = threading.Thread(target=third)
            waits.start()
            waits.join(0.2)
            assert waits.is_alive()
        waits.join(10)
    assert got == [["GPU-8a"]]
    assert said == ["All of the GPUs 3, GPU-8a are used by other jobs; waiting for 1."]
    with reserve_gpus(1, said.append) as again:
        assert again == ["3"]


def test_a_job_of_several_processes_takes_as_many_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with reserve_gpus(2, print) as pair, reserve_gpus(1, print) as single:
        assert (pair, single) == (["0", "1"], ["2"])
    with reserve_gpus(4, print) as too_many:  # the worker says that there are too few
        assert too_many == ["0", "1", "2"]


def test_a_gpu_named_twice_takes_two_jobs_and_cluster_jobs_do_not_share_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    with reserve_gpus(1, print) as first, reserve_gpus(1, print) as second:
        assert first == second == ["0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with reserve_gpus(1, print):
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        with reserve_gpus(1, print) as other:
            assert other == ["0"]


def test_the_visible_gpus_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    with reserve_gpus(1, print) as none:
        assert none == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.slow
def test_parallel_jobs_of_a_sweep_see_different_gpus(tmp_path: Path) -> None:
    """joblib's two processes each run a stand-in for the worker, which ends when both have begun."""
    overrides, environment = parallel(tmp_path)
    meets = PRELUDE + (
        "from pathlib import Path\n"
        "seen = Path(os.environ['SEEN']) / os.environ['CUDA_VISIBLE_DEVICES']\n"
        "seen.touch(); deadline = time.time() + 60\n"
        "while len(os.listdir(seen.parent)) < 2 and time.time() < deadline: time.sleep(0.05)\n"
        "run.set_status('completed')"
    )
    (tmp_path / "seen").mkdir()
    variables = {"WORKER": meets, "SEEN": str(tmp_path / "seen"), "CUDA_VISIBLE_DEVICES": "4,6", **environment}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "-m", "seed=0,1", "hardware=gpu", *overrides],
        cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(os.listdir(tmp_path / "seen")) == ["4", "6"]
    (record,) = tmp_path.glob("runs/sweeps/*/sweep.json")
    assert {job["state"] for job in json.loads(record.read_text())["jobs"]} == {"completed"}
