"""The run directory: one place on disk that is the record of a run, made exclusively and never overwritten.

`<runs_dir>/<name>/<id>/` appears complete or not at all: it is prepared under another name and renamed. What happens
on the same command again is decided by `status.json` and by whether a living process holds the lock, not by the clock.
No torch here: the command line creates run directories.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from agentrl import provenance
from agentrl.config.judges import OPERATIONAL
from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.redact import masker

State = Literal["created", "running", "completed", "failed", "interrupted", "dry_run"]
# They change where and how, not what.
NOT_IN_IDENTITY = (
    *("runs_dir", "name", "run_id", "dry_run", "objective", "tracker", "faults"),
    *("trainer.save_steps", "trainer.keep_checkpoints", "trainer.keep_best"),
    *(f"judge.{key}" for key in OPERATIONAL),
)
LOCK_HELD = "AGENTRL_LOCK_HELD"  # set by the launcher for its worker: the run directory whose lock it holds for it
DISK_ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk with runs_dir=...",
    errno.EDQUOT: "your quota is used up; free some space, or choose another disk with runs_dir=...",
    errno.EROFS: "the file system is read-only; choose a writable runs_dir=...",
    errno.EACCES: "you may not write there; choose a writable runs_dir=...",
    errno.EPERM: "you may not write there; choose a writable runs_dir=...",
    errno.ENOTDIR: "a part of the path is a file; choose another runs_dir=...",
    errno.ENOENT: "it cannot be made there; choose a writable runs_dir=...",
    errno.ENAMETOOLONG: "shorten name=... or runs_dir=...",
}


def config_hash(config: Config) -> str:
    """Eight hexadecimal digits of what determines the result: equal for the same run, wherever it is stored."""
    values = {key: value for key, value in flat(asdict(config)).items() if in_identity(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def run_path(config: Config) -> Path:
    """`<runs_dir>/<name>/<id>`; the id is `run_id`, else derived from seed and configuration."""
    identifier = config.run_id or f"s{config.seed}-{config_hash(config)}"
    return Path(config.runs_dir).expanduser().absolute() / config.name / identifier


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """What the disk refuses becomes one line that names the path and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ADVICE:
            raise
        raise UserError(f"cannot write {path}: {os.strerror(error.errno)}; {DISK_ADVICE[error.errno]}") from error


class RunDirectory:
    """Paths, status, lock and files of one run directory that exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(cls, config: Config) -> RunDirectory | None:
        """A new run directory with config, environment and status; None where one exists under that name."""
        final = run_path(config)
        with _disk_errors(final):
            if final.exists():
                return None
            final.parent.mkdir(parents=True, exist_ok=True)
            draft = cls(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
            try:
                draft.path.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
                for folder in (draft.eval_dir, draft.checkpoints_dir, draft.plots_dir):
                    folder.mkdir()
                draft._write_config(config)
                draft.write_json(draft.environment_path, provenance.collect(config))
                draft.set_status("created")
                os.rename(draft.path, final)  # fails where `final` has come to exist: exactly one creator wins
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)  # nothing is left there after the rename
        return cls(final)

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
        """Take over values outside a run's identity (a raised budget, another tracker) before it is resumed."""
        if changed_keys(self.config(), config):
            raise ValueError("another run's configuration")
        if self.config() != config:
            self._write_config(config)

    def status(self) -> dict[str, Any]:
        """The last status written. Raises UserError where `path` is no run directory."""
        try:
            return dict(json.loads(self.status_path.read_text()))
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

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        """Add one JSON line to a file of records. A line counts only with its newline, so half a line is no record."""
        line = json.dumps(_plain(record, masker()), allow_nan=False) + "\n"
        with _disk_errors(path), path.open("ab") as file:
            drop_torn_tail(path)
            file.write(line.encode())

    def records(self, path: Path) -> list[dict[str, Any]]:
        """The whole records of a file of lines, none where it does not exist; a torn line is no record."""
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(errors="replace").splitlines(True) if _complete(line)]

    def read_metrics(self) -> list[dict[str, Any]]:
        return self.records(self.metrics_path)

    def write_json(self, path: Path, content: Any) -> None:
        """Write a whole JSON file: readers see the old content or the new, also after a power cut."""
        self._write_text(path, json.dumps(_plain(content, masker()), indent=2, allow_nan=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop records that a run resumed from the checkpoint of `step` writes again, and a line that a crash tore.

        A rollout carries the number of updates made before it was sampled, so those of `step` itself come again.
        """
        for path, last in ((self.metrics_path, step), (self.timing_path, step), (self.rollouts_path, step - 1)):
            if path.exists():
                lines = path.read_text(errors="replace").splitlines(keepends=True)
                kept = [line for line in lines if _complete(line) and json.loads(line).get("step", last) <= last]
                if kept != lines:
                    self._write_text(path, "".join(kept))

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
        with _disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            waiting = False
            while not _try_lock(descriptor):
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
        self._write_text(self.config_path, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))

    def _write_text(self, path: Path, text: str) -> None:
        """Atomic replacement: a temporary file beside it, flushed to the disk, renamed."""
        with _disk_errors(path):
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            try:
                with os.fdopen(descriptor, "w") as file:
                    os.fchmod(descriptor, 0o666 & ~_umask())
                    file.write(text)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the rename itself must survive a power cut
            finally:
                os.close(folder)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_gone(pid: str, host: str) -> bool:
    """Whether a process of this machine is known to be gone (or a zombie); of another machine nothing is known."""
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it ended just now, or this system has no /proc
        return Path("/proc/self").exists()
    except PermissionError:  # somebody else's, and alive
        return False


def drop_torn_tail(path: Path) -> None:
    """Cut what a crash left behind the last newline, so that the next record does not grow on it."""
    if _ends_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _complete(line: str) -> bool:
    """Whether a line of records was written to its end."""
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def changed_keys(first: Config, second: Config) -> list[str]:
    """Dotted keys that make two configurations different runs, for a message."""
    left, right = flat(asdict(first)), flat(asdict(second))
    keys = [key for key in {**left, **right} if left.get(key, "absent") != right.get(key, "absent")]
    return [key for key in keys if in_identity(key)]


def in_identity(key: str) -> bool:
    """Whether a dotted key determines the result of a run."""
    return key not in NOT_IN_IDENTITY and key.split(".")[0] not in NOT_IN_IDENTITY


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result


def _plain(value: Any, mask: Callable[[str], str]) -> Any:
    """`value` as strict JSON without secrets: numbers of torch and numpy by `item()`, infinities and NaN as null."""
    if isinstance(value, Mapping):
        return {mask(str(key)): _plain(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, mask) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, int | bool):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if hasattr(value, "item"):
        return _plain(value.item(), mask)
    return mask(str(value))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
