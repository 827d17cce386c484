"""Checkpoints on disk. They are written in another folder, sealed with a manifest, then renamed.

The trainer writes `checkpoints/.writing/checkpoint-N`. `seal` lists every file with its size and SHA-256 in
`manifest.json`, flushes all files to the disk, and renames the folder to `checkpoints/checkpoint-N`. A folder of that
name is complete, unless the disk damaged it. The manifest shows such damage, and a run never resumes from a damaged
checkpoint. This module does not import torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl.store.durable import sha256

MANIFEST = "manifest.json"
WRITING = ".writing"  # a resumed run deletes what a killed run left in this folder


def writing_folder(checkpoints: Path) -> Path:
    """Return the folder that a trainer writes to. It is on the disk of the checkpoints, so a rename is enough."""
    return checkpoints / WRITING


def seal(checkpoints: Path, step: int, metrics: dict[str, float] | None = None) -> Path:
    """Turn the files written for `step` into a checkpoint, with `metrics` in its manifest. Returns its folder.

    Raises OSError if the disk refuses.
    """
    draft, final = writing_folder(checkpoints) / f"checkpoint-{step}", checkpoints / f"checkpoint-{step}"
    files = {}
    for path in sorted(draft.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(draft))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
            _flush(path)
    manifest = {"step": step, "metrics": metrics or {}, "files": files}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _flush(draft / MANIFEST)
    _flush(draft)
    if final.exists():
        _remove(final)
    os.rename(draft, final)
    _flush(checkpoints)
    return final


def find_latest(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint, or None. Deletes what a killed run was writing.

    A damaged checkpoint is renamed to `checkpoint-N.damaged`, with a warning, and the one before it is tried.
    """
    shutil.rmtree(writing_folder(checkpoints), ignore_errors=True)
    for path in reversed(_sealed_checkpoints(checkpoints)):
        fault = find_damage(path)
        if fault is None:
            return path
        aside = path.with_name(f"{path.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(path, aside)
        warn(f"{path} is damaged ({fault}); it is kept as {aside.name}, and the checkpoint before it is used")
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Return how a checkpoint differs from its manifest. None if it is complete."""
    try:
        files = read_manifest(checkpoint)["files"]
        for name, known in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {known['bytes']}"
            if sha256(path) != known["sha256"]:
                return f"the content of {name} has changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):  # incomplete, or not a manifest
        return f"{MANIFEST} cannot be read"
    except OSError as error:  # a failing disk
        return str(error)
    return None


def prune(checkpoints: Path, keep: int, best: str | None = None) -> None:
    """Delete all checkpoints except the newest `keep` and the best one.

    `best` is a metric of the manifests; with '-name' the lowest value is best. Of equal values the newest is best. A
    checkpoint whose metric is missing or not a number is never best.
    """
    paths = _sealed_checkpoints(checkpoints)
    kept = set(paths[-keep:])
    if best is not None:
        kept |= {path for path in [best_checkpoint(checkpoints, best)] if path is not None}
    for path in paths:
        if path not in kept:
            _remove(path)


def best_checkpoint(checkpoints: Path, best: str) -> Path | None:
    """Return the checkpoint with the best value of the metric `best` (see `prune`). None if there is none."""
    name, sign = best.removeprefix("-"), -1 if best.startswith("-") else 1
    values = {}
    for path in _sealed_checkpoints(checkpoints):
        try:
            value = read_manifest(path)["metrics"].get(name)
        except (OSError, ValueError, KeyError, AttributeError):  # damaged, which `find_latest` reports when it matters
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            values[path] = sign * value
    return max(values, key=lambda path: (values[path], step_of(path)), default=None)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest.json of a checkpoint."""
    return dict(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")))


def step_of(checkpoint: Path) -> int:
    """Return the number of updates made before a checkpoint, from its name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _sealed_checkpoints(checkpoints: Path) -> list[Path]:
    """List the checkpoint folders, oldest first."""
    found = [path for path in checkpoints.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def _remove(path: Path) -> None:
    """Delete a checkpoint. A process killed half-way leaves no checkpoint with missing files."""
    trash = writing_folder(path.parent) / f"old-{path.name}"
    trash.parent.mkdir(exist_ok=True)
    os.rename(path, trash)
    shutil.rmtree(trash)


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk. After a power cut, the name must not be there without the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
