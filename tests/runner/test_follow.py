"""What becomes of a submitted job, by what SLURM and the run's status say; without processes."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from agentrl.core.errors import UserError
from agentrl.runner import follow
from agentrl.runner.follow import adopt_submitted, follow_jobs
from agentrl.store import slurm_queue
from agentrl.store.run import RunDirectory
from agentrl.store.sweeps import Job, Sweep, leave_out


class Queue:
    """SLURM as a script: for each look, its living jobs and what the run writes before it."""

    def __init__(self, run: RunDirectory, *looks: tuple[set[str] | None, dict[str, Any] | None]) -> None:
        self.run, self.looks, self.submitted = run, list(looks), 100

    def living(self) -> set[str] | None:
        living, status = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if status is not None:
            self.run.write_json(self.run.status_path, {"created": "", **status})
        return living

    def submit(self, script: Path) -> str:
        self.submitted += 1
        return str(self.submitted)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(follow, "GONE_S", 0.0)
    monkeypatch.setattr(follow, "EVERY_S", 0.0)
    return Sweep(tmp_path / "sweep")


def begin(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, *looks: tuple[set[str] | None, Any]) -> Queue:
    """A job that was submitted as 100, whose run has written nothing."""
    run = RunDirectory(sweep.folder.parent / "run")
    run.path.mkdir(exist_ok=True)
    run.write_json(run.status_path, {"status": "created", "created": "", "slurm": "100"})
    job = sweep.start(["seed=1"], 0)
    job.state, job.run, job.slurm = "submitted", str(run.path), "100"
    sweep.note(job)
    queue = Queue(run, *looks)
    monkeypatch.setattr(follow, "living_jobs", queue.living)
    monkeypatch.setattr(follow, "submit", queue.submit)
    return queue


def followed(sweep: Sweep) -> tuple[Job, list[str]]:
    said: list[str] = []
    follow_jobs(sweep, said.append)
    (job,) = sweep.jobs()
    return job, said


ALIVE, GONE = {"100"}, set[str]()
RUNNING = {"status": "running", "pid": 7, "host": "node3"}


@pytest.mark.parametrize(
    ("looks", "state", "code", "error"),
    [
        ([(ALIVE, None), (ALIVE, RUNNING), (ALIVE, {"status": "completed"})], "completed", 0, None),
        ([(ALIVE, RUNNING), (GONE, {"status": "failed", "error": "why"})], "failed", 1, "why"),
        # saved before the limit, back in the queue, and on again
        ([(ALIVE, {"status": "interrupted"}), (ALIVE, RUNNING), (GONE, {"status": "completed"})], "completed", 0, None),
        ([(ALIVE, RUNNING), (GONE, {"status": "interrupted"})], "interrupted", 130, None),  # by scancel
        ([(None, RUNNING), (None, {"status": "completed"})], "completed", 0, None),  # SLURM does not answer
    ],
)
def test_a_job_ends_as_its_run_does(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, looks: Any, state: str, code: int, error: str | None
) -> None:
    begin(sweep, monkeypatch, *looks)
    job, said = followed(sweep)
    assert (job.state, job.code, job.error, job.tries, said) == (state, code, error, 1, [])
    assert job.ended is not None


@pytest.mark.parametrize("status", [None, RUNNING])
def test_a_lost_job_is_submitted_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    """Before its run has begun, or while it ran."""
    queue = begin(
        sweep, monkeypatch, (ALIVE, status), (GONE, None), ({"101"}, None), ({"101"}, {"status": "completed"})
    )
    job, (text,) = followed(sweep)
    assert (job.state, job.slurm, job.tries, queue.submitted) == ("completed", "101", 2, 101)
    assert text.startswith("SLURM job 100 is lost") and "submitted again as 101" in text


def test_a_job_that_is_lost_again_and_again_fails(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = begin(sweep, monkeypatch, (GONE, None))
    job, said = followed(sweep)
    assert (job.state, job.code, job.tries, queue.submitted, len(said)) == ("failed", 1, 3, 102, 2)
    assert "lost 3 times" in str(job.error) and "job-102.log" in str(job.error)


def test_a_submission_that_is_refused_fails(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(sweep, monkeypatch, (GONE, None))

    def refuse(script: Path) -> str:
        raise UserError("no such partition")

    monkeypatch.setattr(follow, "submit", refuse)
    job, _ = followed(sweep)
    assert (job.state, job.code, job.error) == ("failed", 2, "no such partition")


def test_a_job_gets_time_to_write_its_end(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the queue, and its status arrives later."""
    monkeypatch.setattr(follow, "GONE_S", 60.0)
    queue = begin(sweep, monkeypatch, (GONE, RUNNING), (GONE, None), (GONE, {"status": "completed"}))
    assert followed(sweep)[0].state == "completed" and queue.submitted == 100


def test_a_job_of_an_earlier_call_is_found_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(sweep, monkeypatch, (ALIVE, RUNNING))
    job = sweep.start(["seed=1"], 0)  # the same command again
    job.run = str(sweep.folder.parent / "run")
    assert job.slurm == "100" and adopt_submitted(job) and (job.state, job.slurm) == ("submitted", "100")
    monkeypatch.setattr(follow, "living_jobs", lambda: GONE)
    job = sweep.start(["seed=1"], 0)
    job.run = str(sweep.folder.parent / "run")
    assert not adopt_submitted(job) and (job.state, job.slurm) == ("running", None)


def test_the_queue_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def squeue(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "17\n18_3\n", "")

    code = 0
    monkeypatch.setattr(slurm_queue.subprocess, "run", squeue)
    monkeypatch.setattr(slurm_queue, "_asked", (float("-inf"), None))
    assert slurm_queue.living_jobs() == slurm_queue.living_jobs() == {"17", "18_3"} and len(asked) == 1
    code = 1
    monkeypatch.setattr(slurm_queue, "EVERY_S", 0.0)
    assert slurm_queue.living_jobs() is None and len(asked) == 2
    monkeypatch.setattr(slurm_queue.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert slurm_queue.living_jobs() is None


def test_finished_jobs_are_left_out_and_stay_in_the_record(tmp_path: Path) -> None:
    expected = [["seed=0"], ["seed=1"], ["seed=2"]]
    book, run = Sweep(tmp_path / "sweep", expected), RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_json(run.status_path, {"status": "completed"})
    book.finish(["seed=1"], 1, run.path)
    assert {tuple(job.overrides): job.state for job in book.jobs()} == {
        ("seed=1",): "completed", ("seed=0",): "pending", ("seed=2",): "pending"
    }  # fmt: skip
    parsed = OverridesParser.create().parse_overrides(["seed=0,1,2"])
    sweeper = import_module("hydra._internal.core_plugins.basic_sweeper").BasicSweeper  # the one that Hydra would take
    with leave_out(book):
        assert sweeper.split_arguments(parsed, None) == [[["seed=0"], ["seed=2"]]]
        assert sweeper.split_arguments(parsed, 1) == [[["seed=0"]], [["seed=2"]]]
        for seed in ("seed=0", "seed=2"):
            book.finish([seed], 0, run.path)
        assert sweeper.split_arguments(parsed, None) == []
    assert len(sweeper.split_arguments(parsed, None)[0]) == 3
    assert {job.state for job in book.close()} == {"completed"}  # nothing began, and there are results to show
