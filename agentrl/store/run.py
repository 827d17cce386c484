"""The run directory: the record of a run on disk. Exactly one process creates it, and no run overwrites another's.

`<runs_dir>/<name>/<id>/` appears complete or not at all, because it is prepared under another name and then renamed.
When the same command is given again, `status.json` and the lock of a living process decide what happens, never the
clock. The command line creates run directories, so this module does not import torch.
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
LOCK_HELD = "AGENTRL_LOCK_HELD"  # the launcher sets it for its worker: the run directory whose lock it holds


class RunDirectory:
    """Paths, status, lock and files of one run directory that exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(cls, config: Config) -> RunDirectory | None:
        """Create a run directory with configuration, environment and status. None if the directory exists already.

        The directory of a dry run is replaced, whatever values it holds.
        """
        final = run_path(config)
        with durable.disk_errors(final):
            if final.exists():
                return cls(final)._take_over(config)
        provided = provenance.collect(config)  # outside of disk_errors: a file that cannot be read is another error
        with durable.disk_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            draft = cls(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
            try:
                draft.path.chmod(0o777 & ~durable.umask())  # mkdtemp makes a private directory
                for folder in (draft.eval_dir, draft.checkpoints_dir, draft.plots_dir):
                    folder.mkdir()
                draft._begin(config, provided)
                os.rename(draft.path, final)  # fails if `final` exists by now: exactly one creator wins
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)  # does nothing after the rename
        return cls(final)

    def _take_over(self, config: Config) -> RunDirectory | None:
        """Use the directory of a dry run for another run. None if it is another run's, or if a process works on it."""
        if not self._is_dry():
            return None
        with (self.path / ".lock").open("ab") as lock:
            if not durable.try_lock(lock.fileno()) or not self._is_dry():  # another process has just taken it
                return None
            self._begin(config, provenance.collect(config))
        return self

    def _is_dry(self) -> bool:
        return self.status_path.is_file() and self.status()["status"] == "dry_run"

    def _begin(self, config: Config, provided: dict[str, Any]) -> None:
        self._write_config(config)
        self.write_json(self.environment_path, provided)
        self.set_status("dry_run" if config.dry_run else "created")

    def note_data(self, found: dict[str, Any]) -> None:
        """Record other hashes of data and weights, for a run that has no result yet."""
        known = json.loads(self.environment_path.read_text(encoding="utf-8"))
        self.write_json(self.environment_path, known | {"data": found})

    def has_results(self) -> bool:
        """Whether anything was trained, sampled or evaluated in this run."""
        files = (self.metrics_path, self.rollouts_path, self.path / "pairs.jsonl", *self.eval_dir.glob("*.jsonl"))
        return (
            self.status()["status"] == "completed"
            or any(file.is_file() and file.stat().st_size for file in files)
            or any(self.checkpoints_dir.glob("checkpoint-*"))
        )

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

    def node_path(self, rank: int) -> Path:
        """The file in which a process of machine `rank` says who it is."""
        return self.path / f".node-{rank}"

    def process_of_node(self, rank: int) -> int | None:
        """Return the process of machine `rank` that listens to signals; None until it has begun."""
        file = self.node_path(rank)
        return int(file.read_text(encoding="utf-8")) if file.is_file() else None

    def config(self) -> Config:
        return load_config(self.config_path)

    def adopt(self, config: Config) -> None:
        """Write new values for a resumed run. They must not change its identity, e.g. a budget or a server's address.

        Raises ValueError if they do.
        """
        if set(changed_keys(self.config(), config)) - set(MAY_MOVE):
            raise ValueError("the configuration belongs to another run")
        if self.config() != _unplaced(config):
            self._write_config(config)

    def status(self) -> dict[str, Any]:
        """Read the status. Raises UserError if `path` is not a run directory."""
        try:
            return dict(json.loads(self.status_path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is not a run directory (no status.json); set another run_id=...") from error
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.status_path} is damaged ({error}); move the directory away to start again"
            ) from error

    def set_status(self, state: State, **extra: Any) -> None:
        """Replace the status. Of the old fields only the time of creation stays."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        created = self.status()["created"] if self.status_path.exists() else now
        self.write_json(self.status_path, {"status": state, "created": created, "updated": now, **extra})

    def note(self, **extra: Any) -> None:
        """Add fields to the status. The other fields stay."""
        self.write_json(self.status_path, {**self.status(), **extra})

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        """Append one record to a file of records."""
        durable.append_record(path, record)

    def replace_records(self, path: Path, records: list[dict[str, Any]]) -> None:
        """Replace a file of records."""
        durable.write_records(path, records)

    def records(self, path: Path) -> list[dict[str, Any]]:
        """Read the complete records of a file. Empty if it does not exist."""
        return durable.read_records(path)

    def summary(self) -> dict[str, Any] | None:
        """Read summary.json. None until the run is complete. Raises UserError if the file is damaged."""
        try:
            found: dict[str, Any] = json.loads(self.summary_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.summary_path} is damaged ({error}); move it away and repeat the command") from error
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the records of metrics.jsonl, one per update."""
        return self.records(self.metrics_path)

    def rollouts(self) -> list[dict[str, Any]]:
        """Read the records of rollouts.jsonl: trajectories sampled in training."""
        return self.records(self.rollouts_path)

    def items(self, phase: str = "after") -> list[dict[str, Any]]:
        """Read the records of eval/<phase>.jsonl ("before" or "after"): one for each test item and sample."""
        return self.records(self.eval_dir / f"{phase}.jsonl")

    def last_metrics(self) -> dict[str, Any]:
        """Read the newest record of metrics.jsonl, or {}. Reads only the end of the file."""
        found = durable.last_records(self.metrics_path, 1)
        return found[0] if found else {}

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file in one step."""
        durable.write_json(path, content)

    def truncate_after(self, step: int) -> None:
        """Drop the records that a run resumed from the checkpoint of `step` writes again, and incomplete lines.

        The step of a rollout is the number of updates before it, so the rollouts of `step` itself are sampled again.
        """
        for path, last in ((self.metrics_path, step), (self.timing_path, step), (self.rollouts_path, step - 1)):
            durable.drop_after(path, last)

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Hold the lock of this run, so that no other process works on it. Yields the file descriptor of the lock.

        Yields None if the launcher holds the lock for this process. The kernel releases the lock when its last holder
        ends, so a killed run never blocks its resumption. The worker of a killed launcher holds the lock while it saves
        a checkpoint; this method waits for it. Raises UserError if a living process holds the lock.
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
                        f"{self.path} is in use by process {owner or 'unknown'} on {host or 'another host'}; "
                        "wait for it, or start another run with seed=... or run_id=..."
                    )
                if not waiting:
                    print("agentrl: the run's command was killed; waiting for its worker to stop", file=sys.stderr)
                waiting = True
                time.sleep(0.1)
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # the owner is only for the message above; a full disk must not block the lock
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write_config(self, config: Config) -> None:
        durable.write_text(self.config_path, OmegaConf.to_yaml(OmegaConf.create(_unplaced(config).model_dump())))


def _unplaced(config: Config) -> Config:
    """The configuration without what each machine of a run is told anew, whenever the run starts."""
    hardware = config.hardware.model_copy(update={"node_rank": None, "rendezvous": None})
    return config.model_copy(update={"hardware": hardware})


def find_runs(place: Path) -> Iterator[Path]:
    """Yield the run directories at or below `place`, in the order of their names. Does not look inside runs."""
    if (place / "status.json").is_file() and (place / "config.yaml").is_file():
        yield place
    elif place.is_dir():
        for folder in sorted(place.iterdir()):
            if folder.is_dir() and not folder.name.startswith(".") and not folder.is_symlink():
                yield from find_runs(folder)


def is_gone(pid: str, host: str) -> bool:
    """Whether a process is known to have ended (or is a zombie). False for a process of another machine."""
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it ended just now, or this system has no /proc
        return Path("/proc/self").exists()
    except PermissionError:  # it is alive, and another user's
        return False
