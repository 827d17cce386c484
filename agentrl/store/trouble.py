"""What the machine refuses, in one line that names the knob: disk and memory."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
MEMORY_ADVICE = (
    "lower trainer.tokens_per_batch or trainer.micro_batch (training) or eval.batch (evaluation), set "
    "model.gradient_checkpointing=true, or train adapters with model/lora=on; agentrl dry_run=true estimates the need"
)


def trouble(error: BaseException, run: Path) -> str | None:
    """The machine's refusal and its mending; None where something else is wrong, which keeps its traceback."""
    disk = disk_trouble(error, run)
    if disk is not None:
        advice = "free or grant space there, then give the same command: it resumes from the last whole checkpoint"
        return f"cannot write {run}: {disk}; {advice}"
    memory = memory_trouble(error)
    if memory is not None:
        return f"out of memory ({memory}); {MEMORY_ADVICE}"
    return None


def disk_trouble(error: BaseException, path: Path) -> str | None:
    """Why the disk refused to be written below `path`, or None.

    Only Python's own errors carry an errno: safetensors puts it into its text, and torch.save merely says it failed.
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
    """The allocator's first sentence where memory ran out, on a GPU or not; else None.

    torch's CPU allocator raises a plain RuntimeError, so that its text has to tell.
    """
    words = ("can't allocate memory", "not enough memory", "CUDA out of memory", "Cannot allocate memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    ):
        return (str(error) or type(error).__name__).split(". ")[0].splitlines()[0]
    return None
