"""The record of a sweep: its jobs, the run of each job, and how far the run is.

`<runs_dir>/sweeps/<name>/jobs/` has a small file for every job, and the job's output. The process that does the job
writes them, wherever the launcher started it (another process, a node of a cluster). `sweep.json` combines these files.
The name of the directory depends on the swept keys and the fixed values. So the same sweep, or one with further values,
continues the same record. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from agentrl.core.signals import SWEPT_BY, stop_signals
from agentrl.store.durable import write_json
from agentrl.store.run import RunDirectory, is_gone
from agentrl.store.slurm_queue import living_jobs

REFUSALS = (HydraException, OmegaConfBaseException)  # of a configuration, or of a sweep before its first job
STOPPING = "stopping"  # this file is in the sweep's folder while the sweep stops
LOST = "killed without a record"  # error of a job whose process was killed, with what it was in
IDENTITY_FREE_KEYS = ("runs_dir", "dry_run")  # keys whose values do not make another sweep


class Announcement(Callback):
    """A callback of Hydra, named in conf/config.yaml. When a sweep begins, it calls `hear` in the parent process."""

    hear: Callable[[Sweep, DictConfig], Any] = staticmethod(lambda sweep, config: None)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        type(self).hear(Sweep.of(config), config)


def compose_jobs(sweep: Sweep, config: DictConfig) -> Iterator[tuple[list[str], DictConfig]]:
    """Yield the overrides and values of every job known beforehand. `config` is that of the announcement."""
    loader = GlobalHydra.instance().config_loader()
    for overrides in sweep.expected or []:
        values = loader.load_sweep_config(config, list(overrides))
        with flag_override(values, ["struct", "readonly"], [False, False]):
            del values["hydra"]
        yield list(overrides), values


@dataclass
class Job:
    """One job. `state` is pending, submitted or running, or completed, failed, interrupted or dry_run after the end."""

    overrides: list[str]
    number: int
    state: str = "pending"
    run: str | None = None  # its run directory, after the configuration has passed its checks
    log: str | None = None  # file with the output of its worker
    error: str | None = None
    code: int | None = None
    pid: int = 0  # process id of the process that does the job
    host: str = ""
    began: float = 0.0  # time of the last start, in seconds since the epoch
    ended: float | None = None
    slurm: str | None = None  # number of the SLURM job that does it, with hardware=slurm
    tries: int = 1  # times that it was begun; a lost job is begun again
    inside: str | None = None  # number of the SLURM job that its process is in, with a launcher of Hydra's

    @property
    def directory(self) -> RunDirectory | None:
        return RunDirectory(self.run) if self.run else None


class Sweep:
    """The record in `folder`, and the jobs that this call of the command will do: `expected`, None if unknown."""

    def __init__(self, folder: Path, expected: list[list[str]] | None = None) -> None:
        self.folder, self.expected = folder.absolute(), expected
        self.began = time.time()
        self.settled: set[str] = set()  # digests of jobs that need not begin: their runs are complete

    @classmethod
    def of(cls, config: DictConfig) -> Sweep:
        """Return the sweep that Hydra announced. Only Hydra's basic sweeper knows its jobs beforehand."""
        hydra, expected = config.hydra, None
        if hydra.sweeper._target_.endswith("BasicSweeper"):
            arguments = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
            parsed = OverridesParser.create().parse_overrides([*arguments, *hydra.overrides.task])
            (expected,) = BasicSweeper.split_arguments(parsed, None)
        return cls(Path(hydra.sweep.dir), expected)

    def jobs(self) -> list[Job]:
        """List every recorded job and the expected ones, in the order in which they began, then by number."""
        found = {}
        for path in sorted((self.folder / "jobs").glob("*.json")):
            job = Job(**json.loads(path.read_text(encoding="utf-8")))
            found[path.stem] = _truth(job)
        for number, overrides in enumerate(self.expected or []):
            name = digest(overrides)
            if name not in found:
                found[name] = Job(list(overrides), number)
            elif found[name].began < self.began and name not in self.settled:
                # an earlier call did it, and this call will do it again
                old = found[name]
                found[name] = Job(list(overrides), number, "pending", old.run, old.log)
        return sorted(found.values(), key=lambda job: (job.began == 0, job.began, job.number))

    def wait(self) -> None:
        """Wait until no job of this call is known to run. A launcher that loses one job leaves the others alone."""
        while any(job.state == "running" and job.slurm is None and job.began >= self.began for job in self.jobs()):
            if not any(_is_watched(job) for job in self.jobs() if job.state == "running"):
                return
            time.sleep(0.5)

    def lost(self, jobs: Sequence[Job], broken: bool) -> set[str]:
        """Return the digests of jobs that this call began, whose processes were killed and recorded no end.

        If the launcher is `broken`, those that it did not begin are lost, too.
        """
        killed = [job for job in jobs if job.error == LOST and job.began >= self.began]
        waiting = [job for job in jobs if broken and killed and job.state == "pending"]
        return {digest(job.overrides) for job in [*killed, *waiting]}

    def close(self) -> list[Job]:
        """Write sweep.json after the launcher has returned, and return the jobs. No job runs any more.

        Returns an empty list and writes no file if Hydra refused the sweep before its first job.
        """
        jobs = self.jobs()
        if not self.settled and not any(job.began >= self.began for job in jobs):
            return []
        for job in jobs:
            if job.state == "running" and job.began >= self.began and job.slurm is None:
                if _saves(job):
                    job.state, job.code = "interrupted", 130
                else:
                    job.state, job.code, job.error = "failed", 1, LOST
                self.note(job)
            elif job.error == LOST and job.began >= self.began:  # its own process could not record it
                job.code = 1
                self.note(job)
        common, axes = split_overrides(jobs)
        record = {"fixed": common, "swept": axes, "jobs": [asdict(job) for job in jobs]}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", record)
        return jobs

    def start(self, overrides: Sequence[str], number: int) -> Job:
        """Record that a job begins. The process that does the job calls this."""
        stem = self.folder / "jobs" / digest(overrides)
        stem.parent.mkdir(parents=True, exist_ok=True)
        job = Job(list(overrides), number, "running", log=f"{stem}.log", pid=os.getpid(), began=time.time())
        job.host = socket.gethostname()
        if (old := self.recorded(overrides)) is not None:
            job.slurm = old.slurm  # which may still wait or run
            job.tries = old.tries + (old.error == LOST)
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job.inside = os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"
        self.note(job)
        return job

    def recorded(self, overrides: Sequence[str]) -> Job | None:
        """Return the record of a job, None if it has none."""
        path = self.folder / "jobs" / f"{digest(overrides)}.json"
        return Job(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def finish(self, overrides: Sequence[str], number: int, run: Path) -> None:
        """Record a job whose run is complete already, so that it does not begin."""
        self.settled.add(digest(overrides))
        old = self.recorded(overrides) or Job(list(overrides), number)
        if old.state != "completed" or old.run != str(run):
            ended = (run / "status.json").stat().st_mtime
            self.note(Job(list(overrides), number, "completed", str(run), old.log, code=0, began=ended, ended=ended))

    def note(self, job: Job) -> None:
        """Write the job's file."""
        path = self.folder / "jobs" / f"{digest(job.overrides)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(job))


@contextmanager
def leave_out(sweep: Sweep) -> Iterator[None]:
    """Let Hydra's basic sweeper begin no job that is settled. Hydra itself knows nothing of earlier calls."""
    sweeper = import_module(BasicSweeper.__module__).BasicSweeper  # Hydra may have loaded its plugin a second time
    split = sweeper.split_arguments

    def begin_rest(overrides: Any, size: int | None) -> list[list[list[str]]]:
        (jobs,) = split(overrides, None)
        rest = [job for job in jobs if digest(job) not in sweep.settled]
        return [rest[start : start + (size or len(rest))] for start in range(0, len(rest), size or len(rest) or 1)]

    sweeper.split_arguments = staticmethod(begin_rest)
    try:
        yield
    finally:
        sweeper.split_arguments = staticmethod(split)


@contextmanager
def pass_signals_on(sweep: Sweep) -> Iterator[None]:
    """Pass a signal that stops the command on to the jobs in other processes of this machine, and wait for them.

    Without this, a parallel launcher would kill its processes before they save a checkpoint. A second signal lets it.
    """
    marker, asked = sweep.folder / STOPPING, False
    marker.unlink(missing_ok=True)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        again, asked = asked, True
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()  # no further job begins
        told: set[int] = set()
        while not again and (pids := {job.pid for job in sweep.jobs() if _is_elsewhere(job, sweep.began)}):
            for pid in pids - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            told |= pids
            time.sleep(0.1)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in stop_signals()}
    os.environ[SWEPT_BY] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[SWEPT_BY]
        for number, handler in previous.items():
            signal.signal(number, handler)
        marker.unlink(missing_ok=True)


def begin_in_process(sweep: Sweep) -> None:
    """Prepare the process of a job for signals. Raises KeyboardInterrupt if the sweep is stopping."""
    if os.environ.get(SWEPT_BY, str(os.getpid())) != str(os.getpid()):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # the command passes these on as SIGTERM
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (sweep.folder / STOPPING).exists():
        raise KeyboardInterrupt


def _is_elsewhere(job: Job, since: float) -> bool:
    here = job.host == socket.gethostname() and job.pid != os.getpid()
    return job.state == "running" and job.began >= since and here and job.slurm is None


def _truth(job: Job) -> Job:
    """Correct the state of a job whose process was killed and could not record it. Reads the status of its run."""
    if job.state != "running" or job.slurm is not None or not _has_ended(job) or _saves(job):
        return job
    status: dict[str, Any] = {}
    if job.directory is not None and job.directory.status_path.exists():
        status = job.directory.status()
    job.state = status["status"] if status.get("status") in ("completed", "interrupted") else "failed"
    job.error = None if job.state == "completed" else status.get("error") or LOST
    return job


def _is_watched(job: Job) -> bool:
    """Whether the end of a job's process can be seen from here."""
    return job.host == socket.gethostname() or (job.inside is not None and living_jobs() is not None)


def _has_ended(job: Job) -> bool:
    """Whether the process of a job is known to have ended, here or in SLURM."""
    if job.host == socket.gethostname() or job.inside is None:
        return is_gone(str(job.pid), job.host)
    living = living_jobs()
    return living is not None and job.inside not in living


def _saves(job: Job) -> bool:
    """Whether the worker of a job still lives after the job's process has ended. It then saves a checkpoint."""
    if job.directory is None or not job.directory.status_path.exists():
        return False
    status = job.directory.status()
    return status.get("status") == "running" and not is_gone(str(status.get("pid")), status.get("host", ""))


def digest(overrides: Sequence[str]) -> str:
    """Name the files of a job: a hash of its overrides in ten hexadecimal digits. Their order does not matter."""
    plain = sorted(text for text in overrides if text.split("=")[0] not in IDENTITY_FREE_KEYS)
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()[:10]


def split_overrides(jobs: list[Job]) -> tuple[list[str], list[str]]:
    """Return the overrides that all jobs share, and the keys in which the jobs differ."""
    common = [text for text in jobs[0].overrides if all(text in job.overrides for job in jobs)] if jobs else []
    keys = dict.fromkeys(text.split("=")[0] for job in jobs for text in job.overrides if text not in common)
    return common, list(keys)


def label(job: Job, common: Sequence[str]) -> str:
    """Return the overrides in which a job differs from the others, as typed."""
    return " ".join(text for text in job.overrides if text not in common) or "the only job"


def add_directory(arguments: list[str]) -> list[str]:
    """Add `hydra.sweep.dir=...` to the command line of a sweep, unless it is there."""
    overrides = [text for text in arguments if "=" in text and not text.startswith("-")]
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("sweep=") and text != "sweep=null"]
    multirun = {"-m", "--multirun"} & set(arguments) or "hydra.mode=MULTIRUN" in overrides
    if any(text.startswith("hydra.sweep.dir=") for text in overrides) or not (multirun or chosen):
        return arguments
    own = [text for text in overrides if not text.startswith(("hydra.", "hydra/", "sweep="))]
    swept = [
        item.get_key_element() for item in OverridesParser.create().parse_overrides(own) if item.is_sweep_override()
    ]
    fixed = sorted(text for text in own if text.split("=")[0] not in (*swept, *IDENTITY_FREE_KEYS))
    name = "+".join(chosen or [key.rsplit(".", 1)[-1].replace("/", "_") for key in swept]) or "jobs"
    identity = [*sorted(swept if not chosen else []), "", *fixed]
    number = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:6]
    return [*arguments, f"hydra.sweep.dir=${{runs_dir}}/sweeps/{name}-{number}"]
