"""HIPO through the command line: the embedded bench, resumption, real suites on the shared rows."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.runs.test_runs import command, lines, only_run, run

FEW = ("bench.train_tasks=12", "bench.test_tasks=6", "trainer.max_steps=4", "trainer.save_steps=2")
HIPO = ("algo=hipo", *FEW)


@pytest.fixture(scope="module")
def hipo_run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("hipo")
    run(runs, *HIPO)
    return only_run(runs)


def follows_the_mean_of_all_replies(metrics: list[dict]) -> None:
    """lambda of every step is what the logged means of r_sys, which are over all processes, make it."""
    average, multiplier = metrics[0]["r_sys"], 1.0
    for line in metrics:
        assert line["lambda/sys"] == pytest.approx(multiplier, abs=1e-9)
        average = 0.8 * average + 0.2 * line["r_sys"]
        multiplier = max(0.0, multiplier + 0.3 * (0.7 - average))


@pytest.mark.slow
def test_a_run_logs_rewards_and_multiplier_by_kind_of_prompt(hipo_run: Path):
    metrics = lines(hipo_run / "metrics.jsonl")
    expected = {
        f"{name}{kind}" for name in ("r_user", "r_sys", "violation_rate") for kind in ("", "/conflict", "/aligned")
    }
    assert expected | {"lambda/sys", "tau/sys", "filtered", "missing/user", "missing/sys", "kl"} <= set().union(
        *metrics
    )
    assert metrics[0]["lambda/sys"] == 1.0
    follows_the_mean_of_all_replies(metrics)
    summary = json.loads((hipo_run / "summary.json").read_text())
    assert {"r_user", "r_sys", "violation"} <= set(summary["eval"]["after"])
    assert set(summary["by"]["kind"]) == {"conflict", "aligned"}
    assert {"constraint_sys.png", "lambda.png", "r_sys.png", "r_user.png"} <= {
        p.name for p in (hipo_run / "plots").iterdir()
    }
    saved = torch.load(hipo_run / "checkpoints" / "checkpoint-4" / "dual.pt", weights_only=True)
    assert int(saved["multipliers.0.updates"]) == 4
    rollout = lines(hipo_run / "rollouts.jsonl")[0]
    assert {"r_user", "r_sys", "filtered", "kind"} <= set(rollout)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_multiplier(hipo_run: Path, tmp_path: Path):
    process = subprocess.Popen(command(tmp_path, *HIPO), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.is_file() for path in tmp_path.glob("*/*/checkpoints/checkpoint-2/manifest.json")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode != 0, "the run had ended before it could be killed"
    run(tmp_path, *HIPO)
    assert (only_run(tmp_path) / "metrics.jsonl").read_bytes() == (hipo_run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_share_one_multiplier(tmp_path: Path):
    run(tmp_path, *HIPO, "hardware.processes=2", "rollout.temperature=1.5")
    follows_the_mean_of_all_replies(lines(only_run(tmp_path) / "metrics.jsonl"))


@pytest.mark.slow
def test_sft_imitates_the_expert_replies(tmp_path: Path):
    run(tmp_path, "algo=sft", "bench=minihif", *FEW)
    assert len(lines(only_run(tmp_path) / "metrics.jsonl")) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("bench", "file"), [("verih", "test.json"), ("sys_ifeval", "sys_ifeval.jsonl")])
def test_a_suite_that_a_program_grades_trains_and_is_evaluated(shared: Path, tmp_path: Path, bench: str, file: str):
    path = shared / "data" / bench / file
    overrides = [f"runs_dir={tmp_path}", "algo=hipo", f"bench={bench}", f"bench.path={path}", "eval.limit=8"]
    base = command(tmp_path)[:3]
    done = subprocess.run([*base, *overrides, "hardware.threads=1"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "judge=program" in done.stderr, "the stand-in for r_user is named"
    folder = only_run(tmp_path)
    metrics = lines(folder / "metrics.jsonl")
    assert len(metrics) == 3 and {"user_proxy", "r_sys", "lambda/sys"} <= set(metrics[-1])
    assert not any("r_user" in line for line in metrics), "the stand-in goes by its own name"
    summary = json.loads((folder / "summary.json").read_text())
    assert {"r_sys", "user_proxy"} <= set(summary["eval"]["after"])
