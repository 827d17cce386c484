"""GGUF files: how one is recognised, what reading it needs, and where the checkpoint that is made from it is kept."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from agentrl.core.errors import UserError
from agentrl.core.install import install_line

PACKAGES = ("gguf", "sentencepiece")  # that transformers reads such a file with


def is_gguf(path: str) -> bool:
    """Whether a path names a GGUF file."""
    return path.lower().endswith(".gguf")


def holds_gguf(file: Path) -> bool:
    """Check whether a file begins as a GGUF file does."""
    with file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def converted_folder(file: Path) -> Path:
    """Return the folder of the checkpoint that is made from a GGUF file. Equal files share it, wherever they lie."""
    return cache_folder() / f"{file.stem}-{content_hash(file)[:12]}"


def cache_folder() -> Path:
    """Return the folder of all checkpoints that were made from GGUF files."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root).absolute() / "agentrl" / "gguf"


def content_hash(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. An unchanged file is read once."""
    found = file.expanduser().absolute()
    state = found.stat()
    return _hash(found, state.st_size, state.st_mtime_ns)


@cache
def _hash(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_packages(file: str) -> None:
    """Raise UserError if a package that reads GGUF files is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"{file}: reading it needs the package {' and '.join(missing)}; {install_line('gguf')}")
