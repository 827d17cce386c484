"""Follow the jobs of a sweep that SLURM does (hardware=slurm): until each has ended, and again if one is lost.

A job is lost if SLURM does not know it any more and its run has not recorded an end: the machine broke, or another job
took its place. Nothing but files of the run directory and the queue is read, so the command may be anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agentrl.core.errors import UserError
from agentrl.runner.slurm import submit
from agentrl.store.run import RunDirectory
from agentrl.store.slurm_queue import living_jobs
from agentrl.store.sweeps import Job, Sweep

EVERY_S = 2.0  # between two looks at the jobs
GONE_S = 30.0  # a job that has left the queue may still write its status on a shared disk
RETRIES = 2  # times that a lost job is submitted again


def adopt_submitted(job: Job) -> bool:
    """Check whether SLURM still has a job from an earlier call. If so, the record says that it is submitted."""
    run = RunDirectory(str(job.run))
    status = run.status() if run.status_path.exists() else {}
    living = living_jobs() or set()
    found = next((number for number in (status.get("slurm"), job.slurm) if number in living), None)
    job.slurm = found
    job.state = job.state if found is None else "submitted"
    return found is not None


def follow_jobs(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Wait until the submitted jobs of this call have ended; keep their records, and submit lost jobs again."""
    absent: dict[str, float] = {}  # by SLURM job, the time at which the queue first lacked it
    while waiting := [job for job in sweep.jobs() if _is_queued(job) and job.began >= sweep.began]:
        living = living_jobs()
        for job in waiting:
            before = job.state, job.slurm
            _look_after(job, living, absent, say)
            if (job.state, job.slurm) != before:
                sweep.note(job)
        time.sleep(EVERY_S)


def _is_queued(job: Job) -> bool:
    return job.slurm is not None and job.state in ("submitted", "running")


def _look_after(job: Job, living: set[str] | None, absent: dict[str, float], say: Callable[[str], None]) -> None:
    """Bring the record of a job up to date. `living` are SLURM's jobs, None if they are not known."""
    run, number = RunDirectory(str(job.run)), str(job.slurm)
    status = run.status()
    # While the status names the submission, the job has not written its own.
    state = "submitted" if status.get("slurm") == number else str(status["status"])
    if state == "completed":
        _end(job, "completed", 0)
        return
    if living is None or number in living:
        absent.pop(number, None)
        job.state = "running" if state == "running" else "submitted"  # or saved, and back in the queue
        return
    if time.monotonic() - absent.setdefault(number, time.monotonic()) < GONE_S:
        return
    if state in ("failed", "interrupted"):
        _end(job, state, 130 if state == "interrupted" else 1, status.get("error"))
        return
    log = run.path / f"job-{number}.log"
    if job.tries > RETRIES:
        _end(job, "failed", 1, f"lost {job.tries} times in SLURM; the log of the last job: {log}")
        return
    try:
        job.slurm, job.state, job.tries = submit(run.path / "job.sh"), "submitted", job.tries + 1
    except UserError as error:
        _end(job, "failed", 2, str(error))
        return
    run.note(slurm=job.slurm)
    say(f"SLURM job {number} is lost ({log}); submitted again as {job.slurm}: {run.path}")


def _end(job: Job, state: str, code: int, error: str | None = None) -> None:
    job.state, job.code, job.error, job.ended = state, code, error, time.time()
