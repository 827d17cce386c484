"""The scripts of benchmarks/ that no other test runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_engine_benchmark_measures_every_arm(tmp_path):
    out = tmp_path / "engine.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks/engine.py"), "update-300", "--rounds", "1"]
    done = subprocess.run([*command, "--threads", "1", "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    update = json.loads(out.read_text())
    assert list(update["arms"]) == ["trl", "padded", "packed"]
    tokens = {arm: row["tokens"]["forward"] for arm, row in update["arms"].items()}
    assert tokens["packed"] < tokens["padded"] / 2  # eight rollouts of a long prompt share it

    for fallen in (False, True):
        for arm in ("padded", "packed"):
            update["arms"][arm]["update"] *= 4 if fallen else 0.5
        earlier = tmp_path / f"{fallen}.jsonl"
        earlier.write_text(json.dumps(update | {"commit": "abc"}) + "\n")
        done = subprocess.run([*command, "--threads", "1", "--compare", str(earlier)], capture_output=True, text=True)
        assert "times faster" in done.stdout and "at abc" in done.stdout, done.stderr
        assert (done.returncode, "SLOWER" in done.stdout) == (int(fallen), fallen)


@pytest.mark.slow
def test_an_unknown_workload_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks/engine.py"), "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "unknown workloads: nosuch" in done.stderr
