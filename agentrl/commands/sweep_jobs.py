"""Check the jobs of a sweep before the first begins, watch them, begin lost ones again, and show the results."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from agentrl.config.load import typed_config
from agentrl.core.console import make_console
from agentrl.core.errors import UserError
from agentrl.report.sweep_live import SweepView, job_table
from agentrl.runner.follow import follow_jobs
from agentrl.runner.launch import USER_ERROR
from agentrl.runner.start import check, is_finished
from agentrl.store import sweeps
from agentrl.store.identity import run_path
from agentrl.store.redact import refuse_secrets

RETRIES = 2  # times that jobs begin again whose processes a launcher has lost


@dataclass
class Call:
    """A call of the command with a sweep."""

    complain: Callable[[UserError], None]
    codes: list[int]  # exit codes of the jobs that have ended
    lost: list[set[str]] = field(default_factory=list)  # for each time that jobs begin again, their digests


def check_jobs(sweep: sweeps.Sweep, config: DictConfig, call: Call, stack: ExitStack) -> None:
    """Check every job, then watch them until `stack` closes. If one of them cannot work, none is started."""
    refused, finished, places = 0, list[tuple[list[str], int, Path]](), set[Path]()
    here = config.hydra.launcher._target_.endswith(("BasicLauncher", "JoblibLauncher"))
    try:
        jobs = list(sweeps.compose_jobs(sweep, config))
    except sweeps.REFUSALS:
        return  # Hydra composes all jobs before the first begins, and raises this again
    if jobs:
        print(f"Checking {len(jobs)} jobs before the first begins.", flush=True)
    for number, (overrides, values) in enumerate(jobs):
        try:
            job = typed_config(values)
            refuse_secrets(job)
            check(job, here and not job.hardware.submits)
            place = run_path(job)
            if place in places and not job.dry_run:
                raise UserError(
                    f"{place} is the directory of an earlier job, too: run_id=... names one run, and a key that "
                    "changes no result cannot be swept; leave it out"
                )
            places.add(place)
            if not job.dry_run and is_finished(job):
                finished.append((overrides, number, place))
        except UserError as error:
            refused += 1
            call.complain(UserError(f"{error} [{' '.join(overrides)}]"))
        except Exception:  # a fault of ours; Hydra would swallow it together with the sweep's exit code
            traceback.print_exc()
            sys.exit(1)
    if refused:
        print(f"{refused} of {len(sweep.expected or [])} jobs cannot work; none was started.", file=sys.stderr)
        sys.exit(USER_ERROR)  # Hydra swallows every other exception of a callback
    for found in finished:
        sweep.finish(*found)
    if call.lost:  # the others have ended, or failed
        sweep.settled |= {sweeps.digest(overrides) for overrides, _ in jobs} - call.lost[-1]
    stack.enter_context(_watch_jobs(sweep, call))


@contextmanager
def _watch_jobs(sweep: sweeps.Sweep, call: Call) -> Iterator[None]:
    """Show the jobs while they run anywhere; then show the results, even if the sweep was stopped.

    Jobs whose processes a launcher has lost are noted in `call.lost`, and their sweep goes on without a result.
    """
    console, broken, stopped = make_console(), None, True
    try:
        with SweepView(sweep, console), sweeps.pass_signals_on(sweep), sweeps.leave_out(sweep):
            try:
                yield
            except sweeps.REFUSALS:
                raise
            except Exception as error:  # a launcher raises this if it loses a job, whatever the others do
                broken = error
                sweep.wait()
            follow_jobs(sweep, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
            stopped = False
    finally:
        jobs = sweep.close()
        lost = set() if stopped else sweep.lost(jobs, broken is not None)
        again = lost if len(call.lost) < RETRIES else set()
        call.codes.extend(
            job.code or 0 for job in jobs if job.began >= sweep.began and sweeps.digest(job.overrides) not in again
        )
        if again:
            call.lost.append(again)
            console.print(f"{len(again)} jobs are lost: their processes were killed. They begin again.", soft_wrap=True)
        else:
            _show_results(sweep, jobs, console, call)
    if broken is not None and not lost:
        raise broken


def _show_results(sweep: sweeps.Sweep, jobs: list[sweeps.Job], console: Console, call: Call) -> None:
    if jobs:
        undone = sum(job.state not in ("completed", "dry_run") for job in jobs)
        rest = f"; repeat the command to do the other {undone}" if undone else ""
        console.print(job_table(jobs, f"{len(jobs) - undone} of {len(jobs)} completed{rest}. {sweep.folder}"))
        if queued := [str(job.slurm) for job in jobs if job.slurm and job.state in ("submitted", "running")]:
            console.print(
                f"{len(queued)} jobs go on in SLURM. The same command watches them again. To end them: "
                f"scancel {' '.join(queued)}",
                soft_wrap=True,
            )
        for job in jobs:
            if job.state == "failed" and job.error:
                call.complain(UserError(f"{job.error.strip().splitlines()[-1]} [{job.log}]"))
    runs = [Path(job.run) for job in jobs if job.run and job.state == "completed"]
    if runs:
        from agentrl.report.sweep import report_sweep  # draws, and so imports slow libraries

        report_sweep(sweep.folder, runs, console)
