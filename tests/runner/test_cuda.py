"""Whole runs on a GPU, in processes of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.command_line import agentrl

pytestmark = pytest.mark.cuda
SHORT = ("trainer.max_steps=2", "eval.limit=8", "runs_dir=runs", "bench.train_tasks=32")
RUNS = {
    "pact": ("algo=pact",),
    "grpo": ("algo=grpo",),
    "sft": ("algo=sft",),
    "luffy": ("algo=luffy",),
    "srft": ("algo=srft",),
    "hint_grpo": ("algo=hint_grpo",),
    "lora": ("algo=pact", "model/lora=on", "model.dtype=bfloat16"),
    "compiled": ("algo=pact", "trainer.engine=compiled"),
    "checkpointing": ("algo=pact", "model.gradient_checkpointing=true"),
    "hipo": ("algo=hipo", "model=tiny_hif", "bench=minihif"),
    "dpo": ("algo=dpo", "model=tiny_hif", "bench=minihif"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_evaluates(name: str, tmp_path: Path) -> None:
    keys = [key for key in (*RUNS[name], *SHORT) if "minihif" not in " ".join(RUNS[name]) or "train_tasks" not in key]
    done = agentrl(tmp_path, *keys, "hardware=gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = tmp_path.glob("runs/*/*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if key.startswith("loss")]
    assert losses and all(map(math.isfinite, losses)), lines
    assert json.loads((run / "status.json").read_text())["status"] == "completed"
