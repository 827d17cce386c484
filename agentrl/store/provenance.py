"""Collects what a result depends on besides its configuration: versions, source, hardware, data. Runs once per run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from agentrl.config.places import paths_of
from agentrl.config.schema import Config
from agentrl.config.templates import template_names
from agentrl.core.errors import UserError
from agentrl.core.gguf import content_hash
from agentrl.core.version import __version__
from agentrl.store.durable import fingerprint, sha256

MAX_DIFF = 1_000_000  # characters of an uncommitted diff to keep
LOADED = (".json", ".safetensors", ".bin", ".gguf", ".model", ".jinja", ".txt")  # files of a checkpoint that are read
NOT_LOADED = ("trainer_state.json", "training_args.bin", "manifest.json")
MAX_FILES = 1000  # files of a data directory to list; IHEval has some 50
MAX_BYTES = 2**30  # bytes of these files to hash; further files are listed with their size


def collect(config: Config) -> dict[str, Any]:
    """Return the content of environment.json."""
    return {
        "agentrl": __version__,
        "command": sys.argv,
        "cwd": os.getcwd(),
        "python": sys.version,
        "packages": packages(),
        "git": git_state(Path(__file__).resolve().parents[2]),
        "hardware": hardware(),
        "seeds": {"run": config.seed, "data": getattr(config.bench, "data_seed", None)},
        "data": data_hashes(config),
    }


@cache
def packages() -> dict[str, str]:
    """Return the installed packages and their versions. The first call reads a file of each package."""
    return dict(sorted((dist.name, dist.version) for dist in distributions()))


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Return the commit and the uncommitted changes of the checkout. None for an installed package."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    diff = _output("git", "-C", str(checkout), "diff", "HEAD") or ""
    return {
        "commit": _output("git", "-C", str(checkout), "rev-parse", "HEAD"),
        "diff": diff[:MAX_DIFF],
        "diff_truncated": len(diff) > MAX_DIFF,
        "untracked": (_output("git", "-C", str(checkout), "ls-files", "-o", "--exclude-standard") or "").splitlines(),
    }


def hardware() -> dict[str, Any]:
    """Return processor, memory and GPUs. Asks the system, because importing torch would take seconds."""
    gpus = None
    if shutil.which("nvidia-smi"):
        gpus = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def data_hashes(config: Config) -> dict[str, Any]:
    """Return the SHA-256 of the files that a run reads from the user's disk. Weights are large: see `fingerprint`.

    Raises:
        UserError: a file cannot be read.
    """
    found: dict[str, Any] = {}
    for path in paths_of(config):
        place = Path(path.value).expanduser()
        own_template = path.place == "template" and path.value not in template_names()
        read = path.place in ("data", "settings") and not path.key.startswith("hardware.")
        if read or own_template:
            found[path.key] = hash_of(path.key, place)
        elif path.place == "weights" and place.is_dir():
            found[path.key] = _weights(place)
            if (base := _base_of(place)) is not None:
                found[f"{path.key}: base"] = _weights(base)
        elif path.place == "weights" and place.is_file():
            found[path.key] = content_hash(place)
    return found


def _weights(folder: Path) -> dict[str, str]:
    """Return hashes of the files that loading reads; sentence encoders have some in folders."""
    files = [*folder.iterdir()]
    if (folder / "modules.json").is_file():
        files += folder.glob("*/*")
    return {
        str(file.relative_to(folder)): sha256(file) if file.suffix == ".json" else fingerprint(file)
        for file in sorted(files)
        if file.is_file() and is_loaded(file.name)
    }


def _base_of(folder: Path) -> Path | None:
    """Return the directory of the model that an adapter is for, if it is on this disk."""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    base = Path(str(named)).expanduser()
    return base if base.is_dir() else None


def is_loaded(name: str) -> bool:
    """Whether loading a model reads a file of this name: its weights, tokenizer and settings."""
    return name.endswith(LOADED) and name not in NOT_LOADED


def changed_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what differs between two results of `data_hashes`, as `key` or `key (file)`.

    Only files that the first one names are compared. Older runs have only the sizes of weights, and list more files.
    """
    changed = []
    for key, known in before.items():
        there = now.get(key)
        if isinstance(known, Mapping) and isinstance(there, Mapping):
            read = is_loaded if key == "model.path" else (lambda name: name != "..." and not name.endswith(".md"))
            changed += [
                f"{key} ({name})" for name, one in known.items() if read(name) and _differ(str(one), there.get(name))
            ]
        elif key in now and there != known:
            changed.append(key)
    return changed


def _differ(one: str, other: str | None) -> bool:
    """Whether two hashes are of different contents. A size alone is the beginning of a fingerprint, or says nothing."""
    if other is None:
        return True
    if one.endswith(" bytes") != other.endswith(" bytes"):
        return "bytes" in one and "bytes" in other and not other.startswith(one)
    return one != other


def hash_of(key: str, path: Path) -> str | dict[str, str]:
    """Return the SHA-256 of the file that `key` names, or of the files in the directory. Raises UserError."""
    try:
        if path.is_dir():
            return directory_hashes(path)
        if path.exists() and not path.is_file():  # a pipe can be read only once
            raise UserError(f"{key}={path} is neither a file nor a directory; save it as a file first")
        return sha256(path)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read ({error.strerror}); give a file that exists") from error


def directory_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files by relative path, in alphabetical order, without hidden files and linked directories.

    At most MAX_FILES files are listed, and the key "..." says that there are more. A file that would exceed MAX_BYTES
    in total has its size in place of its hash.
    """
    found: dict[str, str] = {}
    read = 0
    for file in _files_below(folder):
        name = str(file.relative_to(folder))
        if len(found) == MAX_FILES:
            found["..."] = f"more than {MAX_FILES} files; those before {name} are listed"
            break
        size = file.stat().st_size
        fits = read + size <= MAX_BYTES
        read += size if fits else 0
        found[name] = sha256(file) if fits else f"{size} bytes"
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            file for name in sorted(names) if not name.startswith(".") and (file := Path(place, name)).is_file()
        )


def _output(*command: str) -> str | None:
    """Return the standard output of a short command. None if it fails, because provenance must never stop a run."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8"
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
