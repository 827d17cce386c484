"""Writes JSON safely to a disk that may fill up or lose power, and masks secrets.

Files are replaced in one step. Records are appended, one per line; a line counts only with its newline, so half a line
is not a record. An error of the disk becomes a UserError of one line.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.core.jsonl import read_json
from agentrl.store.redact import masker

SAMPLES, BLOCK = 4096, 4096  # blocks of a large file that are read to tell it from another, and their size in bytes
DISK_ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk with runs_dir=...",
    errno.EDQUOT: "your quota is used up; free some space, or choose another disk with runs_dir=...",
    errno.EROFS: "the file system is read-only; choose a writable runs_dir=...",
    errno.EACCES: "you may not write there; choose a writable runs_dir=...",
    errno.EPERM: "you may not write there; choose a writable runs_dir=...",
    errno.ENOTDIR: "a part of the path is a file; choose another runs_dir=...",
    errno.ENOENT: "it cannot be created there; choose a writable runs_dir=...",
    errno.ENAMETOOLONG: "shorten name=... or runs_dir=...",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a UserError that names the path and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ADVICE:
            raise
        raise UserError(f"cannot write {path}: {os.strerror(error.errno)}; {DISK_ADVICE[error.errno]}") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step. Readers see the old or the new content, even after a power cut."""
    write_text(path, json.dumps(_plain(content, masker()), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: write a temporary file beside it, flush that to the disk, rename it."""
    with disk_errors(path):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o666 & ~umask())
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


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line to a file of records. Creates the file if it does not exist."""
    line = json.dumps(_plain(record, masker()), allow_nan=False) + "\n"
    with disk_errors(path), path.open("ab") as file:
        drop_torn_tail(path)
        file.write(line.encode())


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of records in one step."""
    mask = masker()
    write_text(path, "".join(json.dumps(_plain(record, mask), allow_nan=False) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the complete records of a file. Empty if it does not exist."""
    if not path.exists():
        return []
    return [
        read_json(line)
        for line in path.read_text(errors="replace", encoding="utf-8").splitlines(True)
        if _complete(line)
    ]


def last_records(path: Path, count: int) -> list[dict[str, Any]]:
    """Read the newest `count` records of a file, oldest first. Reads only its end: it may be long, and is polled."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 20_000 - 200 * count))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        if len(found) == count:
            break
        with suppress(ValueError):  # the line was cut at the start of the window, or by a crash
            found.append(dict(json.loads(line)))
    return found[::-1]


def drop_after(path: Path, step: int) -> None:
    """Drop the records of later steps, and incomplete lines. A record without a step stays."""
    if path.exists():
        lines = path.read_text(errors="replace", encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _complete(line) and json.loads(line).get("step", step) <= step]
        if kept != lines:
            write_text(path, "".join(kept))


def drop_torn_tail(path: Path) -> None:
    """Cut what a crash left after the last newline, so that the next record starts on its own line."""
    if _ends_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def umask() -> int:
    """Return the file mode creation mask of the process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _complete(line: str) -> bool:
    """Whether a line of records is complete."""
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _plain(value: Any, mask: Callable[[str], str]) -> Any:
    """Convert `value` to strict JSON without secrets. NaN and infinities become null; torch and numpy give numbers."""
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits. An unchanged file is read once."""
    state = path.stat()
    return _sha256(path.absolute(), state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Return the size of a file and a digest of SAMPLES evenly spaced blocks of it: files of weights are too large."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(size * number // SAMPLES)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file. False if another process holds it. Closing the descriptor releases the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
