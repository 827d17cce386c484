"""Explains errors of the machine (disk, memory) in one line that names the key to change."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
MEMORY_ADVICE = (
    "lower trainer.tokens_per_batch (training) or eval.batch (evaluation), set "
    "model.gradient_checkpointing=true, or train adapters with model/lora=on; agentrl dry_run=true estimates the need"
)


def explain_trouble(error: BaseException, run: Path) -> str | None:
    """Explain an error of the disk or the memory. None for any other error, which keeps its traceback."""
    disk = disk_trouble(error, run)
    if disk is not None:
        advice = "free space or grant access there, then repeat the command: it resumes from the last whole checkpoint"
        return f"cannot write {run}: {disk}; {advice}"
    memory = memory_trouble(error)
    if memory is not None:
        return f"out of memory ({memory}); {MEMORY_ADVICE}"
    return None


def disk_trouble(error: BaseException, path: Path) -> str | None:
    """Return why the disk refused to write below `path`. None if the error has another cause.

    Only Python's errors carry an errno. safetensors puts it into its text, and torch.save only says that it failed.
    """
    if isinstance(error, OSError):
        elsewhere = error.filename is not None and not Path(str(error.filename)).is_relative_to(path)
        return os.strerror(error.errno) if error.errno in REFUSALS and not elsewhere else None
    for number in REFUSALS:
        if f"os error {number}" in str(error):
            return os.strerror(number)
    if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
        return os.strerror(errno.ENOSPC) if shutil.disk_usage(path).free < 1 << 20 else str(error)
    return None


def memory_trouble(error: BaseException) -> str | None:
    """Return the allocator's first sentence if memory ran out, on a CPU or a GPU. Else None.

    torch's CPU allocator raises a plain RuntimeError, so the text decides.
    """
    words = ("can't allocate memory", "not enough memory", "CUDA out of memory", "Cannot allocate memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    ):
        return (str(error) or type(error).__name__).split(". ")[0].splitlines()[0]
    return None
