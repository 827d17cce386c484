"""HIPO's baselines end to end: from the command line to a summary, through real workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = ("eval.limit=12", "hardware.threads=1", "trainer.max_steps=3", "trainer.save_steps=2")


def run(tmp_path: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    command = [sys.executable, "-m", "agentrl", f"runs_dir={tmp_path}", *SMALL, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    (summary,) = tmp_path.glob("*/*/summary.json")
    return summary.parent, json.loads(summary.read_text())


@pytest.mark.slow
def test_split_softmax_evaluates_with_and_without(tmp_path: Path) -> None:
    folder, summary = run(tmp_path, "algo=split_softmax", "algo.k=0.2", "eval.temperature=0", "eval.samples=1")
    assert summary["steps"] == 0 and not (folder / "model").exists()
    before, after = (
        [json.loads(line) for line in (folder / "eval" / f"{when}.jsonl").read_text().splitlines()]
        for when in ("before", "after")
    )
    assert len(before) == len(after) == 12
    assert [item["id"] for item in before] == [item["id"] for item in after]
    assert before != after  # greedy both times: what differs is attention


@pytest.mark.slow
def test_dpo_samples_pairs_once_and_trains(tmp_path: Path) -> None:
    folder, summary = run(tmp_path, "algo=dpo", "trainer.minibatch_prompts=8", "trainer.prompts_per_batch=8")
    assert summary["steps"] == 3
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(sum(pair["chosen"].values()) > sum(pair["rejected"].values()) for pair in pairs)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss/total"] == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is the reference
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_focal_lora_raises_attention_to_the_system(tmp_path: Path) -> None:
    folder, _ = run(
        tmp_path,
        "algo=focal_lora",
        "algo.probe_prompts=8",
        "algo.head_share=0.5",
        "trainer.learning_rate=1e-2",
        "trainer.max_steps=8",
        "trainer.minibatch_prompts=8",
        "trainer.prompts_per_batch=8",
    )
    record = json.loads((folder / "heads.json").read_text())
    layers, heads = record["of"]
    assert sum(map(len, record["heads"].values())) == layers * heads // 2
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["system_mass"] > metrics[0]["system_mass"]
    assert (folder / "model" / "adapter_config.json").is_file()
