"""An evaluation behind a real vLLM server is the one in process, item by item."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.support.smollm2 import smollm2_path
from tests.support.vllm_process import vllm_serving

pytestmark = pytest.mark.vllm
TINY = Path(str(files("agentrl.tiny") / "tiny"))
LIMITS = (
    *("bench=minihop", "eval.limit=40", "hardware.threads=1", "rollout.max_turns=6"),
    *("rollout.max_prompt_tokens=4096", "rollout.max_completion_tokens=512", "rollout.max_turn_tokens=64"),
)
COMPARED = ("messages", "metrics", "calls", "tool_errors", "truncated", "turns", "tokens")


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("here")
    evaluate("model=tiny", f"runs_dir={runs}")
    return items(runs)


def evaluate(*arguments: str) -> str:
    command = [sys.executable, "-m", "agentrl", "eval", *arguments, *LIMITS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def items(runs: Path) -> dict[str, Any]:
    (file,) = runs.glob("*/*/eval/after.jsonl")
    return {item["id"]: item for item in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_greedy_items_are_those_in_process(penalty: float, in_process: dict[str, Any], tmp_path: Path) -> None:
    """With a penalty in generation_config.json, too, as Qwen2.5 has it: vLLM applies it where nothing is sent."""
    checkpoint = shutil.copytree(TINY, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps(config | {"repetition_penalty": penalty}))
    settings = ("--max-model-len", "8192", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with vllm_serving(checkpoint, tmp_path, *settings) as server:
        printed = evaluate(f"endpoint={server.url}/v1", "model=served", f"runs_dir={tmp_path / 'runs'}")
    there = items(tmp_path / "runs")
    assert "repetition_penalty 1" in printed and "it refuses" not in printed
    assert len(in_process) == 40 and in_process.keys() == there.keys()
    assert sum(item["metrics"]["solve_rate"] for item in in_process.values()) > 4  # some are solved
    differing = [name for name, item in in_process.items() if any(item[key] != there[name][key] for key in COMPARED)]
    assert not differing


def test_greedy_replies_of_a_real_language_model_are_those_in_process(tmp_path: Path) -> None:
    checkpoint = smollm2_path()
    asked = ("bench=minihif", "eval.limit=12", "eval.temperature=0", "hardware.threads=1")
    asked = (*asked, "rollout.max_completion_tokens=48", "rollout.max_prompt_tokens=512")

    def replies(*arguments: str) -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "agentrl",
            "eval",
            *arguments,
            *asked,
            f"runs_dir={tmp_path / arguments[0][:5]}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return items(tmp_path / arguments[0][:5])

    here = replies(f"model={checkpoint}")
    with vllm_serving(checkpoint, tmp_path, "--max-model-len", "1024", "--dtype", "float32") as server:
        there = replies(f"endpoint={server.url}/v1", "model=served")
    assert len(here) == 12 and here.keys() == there.keys()
    assert len({item["messages"][-1]["content"] for item in here.values()}) > 9  # replies, not one sentence
    assert not [name for name, item in here.items() if item["messages"] != there[name]["messages"]]
