"""Do one run of agentrl in a process of its own, for the scripts that compare many."""

from __future__ import annotations

import subprocess
import sys


def run_agentrl(label: str, words: list[str]) -> bool:
    """Run `agentrl WORDS` and print how it ended; return whether it succeeded. A failure stops nothing else."""
    done = subprocess.run([sys.executable, "-m", "agentrl", *words], capture_output=True, text=True, encoding="utf-8")
    ended = "done" if done.returncode == 0 else f"failed: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    print(f"{label}: {ended}", file=sys.stderr, flush=True)
    return done.returncode == 0
