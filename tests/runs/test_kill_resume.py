"""Thirty kills at random moments: benchmarks/faults.py, spread over the algorithms so that they run side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"
KILLS = {"sft": 7, "grpo": 7, "pact": 8, "hipo": 8}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize(("algo", "kills"), KILLS.items())
def test_a_killed_run_resumes_to_the_undisturbed_one(tmp_path: Path, algo: str, kills: int) -> None:
    command = [sys.executable, SCRIPT, "--algos", algo, "--kills", str(kills), "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} of {kills} resumed runs equal the undisturbed one" in done.stdout
