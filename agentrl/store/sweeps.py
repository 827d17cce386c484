"""The record of a sweep: which jobs it has, where each one's run lies, and how far that is.

`<runs_dir>/sweeps/<name>/jobs/` holds a small file for every job, written by the process that does it, wherever the
launcher has put that (another process, a node of a cluster), and its output. `sweep.json` is all of them together.
The directory's name follows from what is swept and what is fixed: the same sweep again, or with further values, goes on
in the same record. No torch here.
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
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from agentrl.core.signals import SWEPT_BY, stop_signals
from agentrl.store.durable import write_json
from agentrl.store.run import RunDirectory, is_gone

STOPPING = "stopping"  # a file in the sweep's folder while it is being stopped
IDENTITY_FREE_KEYS = ("runs_dir", "dry_run")  # values that make no other sweep


class Announcement(Callback):
    """Named in conf/config.yaml: Hydra tells it, in the parent, that a sweep begins; it tells `hear`."""

    hear: Callable[[Sweep, DictConfig], Any] = staticmethod(lambda sweep, config: None)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        type(self).hear(Sweep.of(config), config)


def composed_jobs(sweep: Sweep, config: DictConfig) -> Iterator[tuple[list[str], DictConfig]]:
    """Overrides and values of every job that is known beforehand; `config` is what the announcement brought."""
    loader = GlobalHydra.instance().config_loader()
    for overrides in sweep.expected or []:
        values = loader.load_sweep_config(config, list(overrides))
        with flag_override(values, ["struct", "readonly"], [False, False]):
            del values["hydra"]
        yield list(overrides), values


@dataclass
class Job:
    """One job. `state` is pending, running, or how it ended: completed, failed, interrupted, dry_run."""

    overrides: list[str]
    number: int
    state: str = "pending"
    run: str | None = None  # its run directory, once the configuration is known to be good
    log: str | None = None  # what its worker printed
    error: str | None = None
    code: int | None = None
    pid: int = 0  # of the process that does it
    host: str = ""
    began: float = 0.0  # seconds since the epoch, of the last time it was started
    ended: float | None = None

    @property
    def directory(self) -> RunDirectory | None:
        return RunDirectory(self.run) if self.run else None


class Sweep:
    """The record under `folder`, and what this call of the command is to do: `expected` jobs, None where unknown."""

    def __init__(self, folder: Path, expected: list[list[str]] | None = None) -> None:
        self.folder, self.expected = folder.absolute(), expected
        self.began = time.time()

    @classmethod
    def of(cls, config: DictConfig) -> Sweep:
        """The sweep that Hydra announced; only its own sweeper says beforehand what the jobs will be."""
        hydra, expected = config.hydra, None
        if hydra.sweeper._target_.endswith("BasicSweeper"):
            arguments = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
            parsed = OverridesParser.create().parse_overrides([*arguments, *hydra.overrides.task])
            (expected,) = BasicSweeper.split_arguments(parsed, None)
        return cls(Path(hydra.sweep.dir), expected)

    def jobs(self) -> list[Job]:
        """Every job on record and those still expected, in the order of their numbers."""
        found = {}
        for path in sorted((self.folder / "jobs").glob("*.json")):
            job = Job(**json.loads(path.read_text(encoding="utf-8")))
            found[path.stem] = _truth(job)
        for number, overrides in enumerate(self.expected or []):
            name = digest(overrides)
            if name not in found:
                found[name] = Job(list(overrides), number)
            elif found[name].began < self.began:  # of an earlier call, and due again
                old = found[name]
                found[name] = Job(list(overrides), number, "pending", old.run, old.log)
        return sorted(found.values(), key=lambda job: (job.began == 0, job.began, job.number))

    def close(self) -> list[Job]:
        """The launcher has returned, so nothing runs any more: write sweep.json, and return its jobs.

        None, and no file, where Hydra refused the sweep before its first job.
        """
        jobs = self.jobs()
        if not any(job.began >= self.began for job in jobs):
            return []
        for job in jobs:
            if job.state == "running" and job.began >= self.began:
                if _saves(job):
                    job.state, job.code = "interrupted", 130
                else:
                    job.state, job.code, job.error = "failed", 1, "ended without a record"
                self.note(job)
        common, axes = split_overrides(jobs)
        record = {"fixed": common, "swept": axes, "jobs": [asdict(job) for job in jobs]}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", record)
        return jobs

    def start(self, overrides: Sequence[str], number: int) -> Job:
        """Note that a job begins, in the process that does it."""
        stem = self.folder / "jobs" / digest(overrides)
        stem.parent.mkdir(parents=True, exist_ok=True)
        job = Job(list(overrides), number, "running", log=f"{stem}.log", pid=os.getpid(), began=time.time())
        job.host = socket.gethostname()
        self.note(job)
        return job

    def note(self, job: Job) -> None:
        """Write the job's file."""
        path = self.folder / "jobs" / f"{digest(job.overrides)}.json"
        write_json(path, asdict(job))


@contextmanager
def stopping_jobs(sweep: Sweep) -> Iterator[None]:
    """What stops the command stops the jobs that other processes of this machine do, too, and waits until they have.

    Left to itself a parallel launcher kills its processes, and with them what saves a checkpoint there. A second signal
    lets it do so.
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
    """For a job, wherever it is done. Raises KeyboardInterrupt where its sweep is being stopped."""
    if os.environ.get(SWEPT_BY, str(os.getpid())) != str(os.getpid()):
        for number in (signal.SIGINT, signal.SIGHUP):  # they reach all processes of a terminal; the command tells us
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (sweep.folder / STOPPING).exists():
        raise KeyboardInterrupt


def _is_elsewhere(job: Job, since: float) -> bool:
    here = job.host == socket.gethostname() and job.pid != os.getpid()
    return job.state == "running" and job.began >= since and here


def _truth(job: Job) -> Job:
    """A job whose process was killed could not write that down: its run directory knows how far it came."""
    if job.state != "running" or not is_gone(str(job.pid), job.host) or _saves(job):
        return job
    status: dict[str, Any] = {}
    if job.directory is not None and job.directory.status_path.exists():
        status = job.directory.status()
    job.state = status["status"] if status.get("status") in ("completed", "interrupted") else "failed"
    job.error = None if job.state == "completed" else status.get("error") or "killed without a record"
    return job


def _saves(job: Job) -> bool:
    """Whether the worker of a job whose process has gone is there: it saves a checkpoint."""
    if job.directory is None or not job.directory.status_path.exists():
        return False
    status = job.directory.status()
    return status.get("status") == "running" and not is_gone(str(status.get("pid")), status.get("host", ""))


def digest(overrides: Sequence[str]) -> str:
    """Name of a job's files: ten hexadecimal digits of its overrides, in whatever order."""
    plain = sorted(text for text in overrides if text.split("=")[0] not in IDENTITY_FREE_KEYS)
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()[:10]


def split_overrides(jobs: list[Job]) -> tuple[list[str], list[str]]:
    """Overrides that all jobs have in common, and the keys in which they differ."""
    common = [text for text in jobs[0].overrides if all(text in job.overrides for job in jobs)] if jobs else []
    keys = dict.fromkeys(text.split("=")[0] for job in jobs for text in job.overrides if text not in common)
    return common, list(keys)


def label(job: Job, common: Sequence[str]) -> str:
    """What sets a job apart from the others, as typed."""
    return " ".join(text for text in job.overrides if text not in common) or "the only job"


def with_directory(arguments: list[str]) -> list[str]:
    """The command line with `hydra.sweep.dir=...` added, if it describes a sweep and does not name one itself."""
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
