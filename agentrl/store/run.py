"""The run directory: one place on disk that is the record of a run, made exclusively and never overwritten.

`<runs_dir>/<name>/<id>/` appears complete or not at all: it is prepared under another name and renamed. What happens
on the same command again is decided by `status.json` and by whether a living process holds the lock, not by the clock.
No torch here: the command line creates run directories.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.store import durable, provenance
from agentrl.store.identity import MAY_MOVE, changed_keys, run_path

State = Literal["created", "running", "completed", "failed", "interrupted", "dry_run"]
LOCK_HELD = "AGENTRL_LOCK_HELD"  # set by the launcher for its worker: the run directory whose lock it holds for it


class RunDirectory:
    """Paths, status, lock and files of one run directory that exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(cls, config: Config) -> RunDirectory | None:
        """A new run directory with config, environment and status; None where one exists under that name.

        A dry run has reserved nothing: its directory is taken over, whatever values it holds.
        """
        final = run_path(config)
        with durable.disk_errors(final):
            if final.exists():
                return cls(final)._take_over(config)
        provided = provenance.collect(config)  # what cannot be read here is no fault of the disk that is written
        with durable.disk_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            draft = cls(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
            try:
                draft.path.chmod(0o777 & ~durable.umask())  # mkdtemp makes private directories
                for folder in (draft.eval_dir, draft.checkpoints_dir, draft.plots_dir):
                    folder.mkdir()
                draft._begin(config, provided)
                os.rename(draft.path, final)  # fails where `final` has come to exist: exactly one creator wins
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)  # nothing is left there after the rename
        return cls(final)

    def _take_over(self, config: Config) -> RunDirectory | None:
        """This directory for another run, if it is a dry run's that nobody works on; else None."""
        if not self._is_dry():
            return None
        with (self.path / ".lock").open("ab") as lock:
            if not durable.try_lock(lock.fileno()) or not self._is_dry():  # another has just taken it
                return None
            self._begin(config, provenance.collect(config))
        return self

    def _is_dry(self) -> bool:
        return self.status_path.is_file() and self.status()["status"] == "dry_run"

    def _begin(self, config: Config, provided: dict[str, Any]) -> None:
        self._write_config(config)
        self.write_json(self.environment_path, provided)
        self.set_status("dry_run" if config.dry_run else "created")

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing_path(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def eval_dir(self) -> Path:
        return self.path / "eval"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots_dir(self) -> Path:
        return self.path / "plots"

    def config(self) -> Config:
        return load_config(self.config_path)

    def adopt(self, config: Config) -> None:
        """Take over values outside a run's identity (a raised budget, a server's new address) before it is resumed."""
        if set(changed_keys(self.config(), config)) - set(MAY_MOVE):
            raise ValueError("another run's configuration")
        if self.config() != config:
            self._write_config(config)

    def status(self) -> dict[str, Any]:
        """The last status written. Raises UserError where `path` is no run directory."""
        try:
            return dict(json.loads(self.status_path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is no run directory (no status.json); choose another run_id=...") from error
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.status_path} is damaged ({error}); move the directory away to begin anew"
            ) from error

    def set_status(self, state: State, **extra: Any) -> None:
        """Replace the status; the time of creation is kept, other fields of the old one are not."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        created = self.status()["created"] if self.status_path.exists() else now
        self.write_json(self.status_path, {"status": state, "created": created, "updated": now, **extra})

    def note(self, **extra: Any) -> None:
        """Add fields to the status, which otherwise stays."""
        self.write_json(self.status_path, {**self.status(), **extra})

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        """Add one line to a file of records."""
        durable.append_record(path, record)

    def replace_records(self, path: Path, records: list[dict[str, Any]]) -> None:
        """Write a file of records anew."""
        durable.write_records(path, records)

    def records(self, path: Path) -> list[dict[str, Any]]:
        """The whole records of a file of lines, none where it does not exist."""
        return durable.read_records(path)

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None until the run is complete. Raises UserError where it is damaged."""
        try:
            found: dict[str, Any] = json.loads(self.summary_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.summary_path} is damaged ({error}); move it away and repeat the command") from error
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one an update."""
        return self.records(self.metrics_path)

    def rollouts(self) -> list[dict[str, Any]]:
        """The records of rollouts.jsonl: trajectories sampled while training."""
        return self.records(self.rollouts_path)

    def items(self, phase: str = "after") -> list[dict[str, Any]]:
        """The records of eval/<phase>.jsonl ("before" or "after"): one for each test item and sample."""
        return self.records(self.eval_dir / f"{phase}.jsonl")

    def last_metrics(self) -> dict[str, Any]:
        """The newest record of metrics.jsonl, or {}; the file may be long."""
        found = durable.last_records(self.metrics_path, 1)
        return found[0] if found else {}

    def write_json(self, path: Path, content: Any) -> None:
        """Write a whole JSON file, or leave the old one."""
        durable.write_json(path, content)

    def truncate_after(self, step: int) -> None:
        """Drop records that a run resumed from the checkpoint of `step` writes again, and a line that a crash tore.

        A rollout carries the number of updates made before it was sampled, so those of `step` itself come again.
        """
        for path, last in ((self.metrics_path, step), (self.timing_path, step), (self.rollouts_path, step - 1)):
            durable.drop_after(path, last)

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Be the only process that works on this run; yields the lock's file descriptor (None: the launcher has it).

        The kernel drops the lock with its last holder, so a killed run never blocks its own resumption. The worker of a
        killed launcher holds it while it saves a checkpoint: that is waited for. Raises UserError for a living owner.
        """
        if os.environ.get(LOCK_HELD) == str(self.path):
            yield None
            return
        path = self.path / ".lock"
        with durable.disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            waiting = False
            while not durable.try_lock(descriptor):
                owner, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").partition(" ")
                if not is_gone(owner, host):
                    raise UserError(
                        f"{self.path} is being worked on by process {owner or 'unknown'} on {host or 'another host'}; "
                        "wait for it, or start another run with seed=... or run_id=..."
                    )
                if not waiting:
                    print("agentrl: that run's command was killed; waiting for its worker to stop", file=sys.stderr)
                waiting = True
                time.sleep(0.1)
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # the owner only serves the message above; a full disk must not block a lock
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write_config(self, config: Config) -> None:
        durable.write_text(self.config_path, OmegaConf.to_yaml(OmegaConf.create(config.model_dump())))


def find_runs(place: Path) -> Iterator[Path]:
    """Run directories at or below `place`, in the order of their names; what lies inside a run is not looked at."""
    if (place / "status.json").is_file() and (place / "config.yaml").is_file():
        yield place
    elif place.is_dir():
        for folder in sorted(place.iterdir()):
            if folder.is_dir() and not folder.name.startswith(".") and not folder.is_symlink():
                yield from find_runs(folder)


def is_gone(pid: str, host: str) -> bool:
    """Whether a process of this machine is known to be gone (or a zombie); of another machine nothing is known."""
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it ended just now, or this system has no /proc
        return Path("/proc/self").exists()
    except PermissionError:  # somebody else's, and alive
        return False
