"""Choose the GPUs of a job of a sweep: jobs that run side by side have their own GPUs, or wait for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agentrl.store.durable import try_lock

EVERY_S = 1.0  # between two looks for a free GPU


def visible_gpus() -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them; if it is not set, all that the driver knows."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(listing, capture_output=True, encoding="utf-8", timeout=20, check=False)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


@contextmanager
def reserve_gpus(count: int, say: Callable[[str], None]) -> Iterator[list[str]]:
    """Reserve `count` of the visible GPUs for this job until the block ends; `say` reports a wait.

    If the machine has no more than `count`, the job gets all. A GPU that CUDA_VISIBLE_DEVICES names twice is given to
    two jobs. The locks are the kernel's: it frees those of a killed job.
    """
    visible = visible_gpus()
    places = [f"{name}-{visible[:position].count(name)}" for position, name in enumerate(visible)]
    with ExitStack() as held:
        found: list[int] = []
        waiting = False
        while len(found) < min(count, len(visible)):
            found = _take(held, places, min(count, len(visible)))
            if not found:
                if not waiting:
                    say(f"All of the GPUs {', '.join(visible)} are used by other jobs; waiting for {count}.")
                waiting = True
                time.sleep(EVERY_S)
        yield [visible[position] for position in found]


def _take(held: ExitStack, places: list[str], count: int) -> list[int]:
    """Return the positions of `count` free places and lock them until `held` closes; empty if fewer are free."""
    # A cluster manager shows different GPUs under the same numbers to different jobs.
    scope = f"agentrl-gpus-{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'here')}"
    folder = Path(tempfile.gettempdir()) / scope
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as trial:
        found = []
        for position, place in enumerate(places):
            file = trial.enter_context((folder / f"{place}.lock").open("wb"))
            if try_lock(file.fileno()):
                found.append(position)
            if len(found) == count:
                held.enter_context(trial.pop_all())
                return found
    return []
