"""BFCL: a run, and its evaluation scored by the official program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.benches.bfcl.environment import BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.verdicts import judge, turns_of
from agentrl.commands.export import main as export
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory
from tests.support.bfcl_play import bench_of, needs_bfcl, play_gold
from tests.support.helpers import composed

pytestmark = needs_bfcl


@pytest.fixture(scope="module")
def bench():
    return bench_of("bench.categories=[multi_turn]")


@pytest.mark.slow
def test_the_official_evaluator_scores_an_exported_run_as_we_do(bench, tmp_path, capsys):
    """The real `bfcl evaluate` on the files of `agentrl export`: whole, cut and wrong episodes, and answers."""
    run = RunDirectory.create(composed("bench=bfcl", f"runs_dir={tmp_path}", "name=x"))
    items, ours = [], {"multi_turn_base": [], "memory_kv": []}
    for number, entry in enumerate(bench.entries("multi_turn_base")[:4]):
        *_, messages = play_gold(entry, BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload)))
        kept = {1: messages[:3], 2: [m for m in messages if not m.get("tool_calls")]}.get(number, messages)
        items.append({"id": entry.id, "sample": 0, "messages": kept})
        ours["multi_turn_base"].append(judge(bench.simulator, entry, turns_of(kept))[0])
    for entry in bench.entries("memory_kv")[:2]:
        kept = [{"role": "assistant", "content": "I think <b>Michael</b>."}]
        items.append({"id": entry.id, "sample": 0, "messages": kept})
        ours["memory_kv"].append(judge(bench.simulator, entry, turns_of(kept))[0])
    run.eval_dir.mkdir(exist_ok=True)
    for item in [*items, {**items[1], "sample": 1}]:
        run.append(run.eval_dir / "after.jsonl", item)
    out = tmp_path / "official"
    assert export(["bfcl", str(run.path), f"out={out}"]) == 0
    assert f"BFCL_PROJECT_ROOT={out} bfcl evaluate --model Qwen/Qwen3-8B-FC" in capsys.readouterr().out
    script = Path(__file__).parents[1] / "support" / "official_bfcl.py"
    done = subprocess.run(
        [sys.executable, str(script), "Qwen/Qwen3-8B-FC", *ours],
        env={**os.environ, "BFCL_PROJECT_ROOT": str(out)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for category, verdicts in ours.items():
        (file,) = (out / "score").rglob(f"BFCL_v4_{category}_score.json")
        head = json.loads(file.read_text().splitlines()[0])
        assert (head["correct_count"], head["total_count"]) == (sum(verdicts), len(verdicts)), category
        assert 0 < sum(verdicts) < len(verdicts)


def test_export_wants_a_bfcl_run_with_an_evaluation(tmp_path):
    for arguments in ([], ["bfcl"], ["ftrl", str(tmp_path)]):
        with pytest.raises(UserError, match="agentrl export bfcl RUN"):
            export(arguments)
    run = RunDirectory.create(composed("bench=bfcl", f"runs_dir={tmp_path}", "name=x"))
    with pytest.raises(UserError, match="holds no evaluation called after"):
        export(["bfcl", str(run.path)])
    other = RunDirectory.create(composed(f"runs_dir={tmp_path}", "name=y"))
    with pytest.raises(UserError, match="is a run on bench=minihop; name a run on bench=bfcl"):
        export(["bfcl", str(other.path)])


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pact_trains_and_evaluates_on_bfcl(tmp_path):
    """Multi-turn and memory, the latter played before each evaluation."""
    overrides = [
        "algo=pact",
        "model=tiny",
        "bench=bfcl",
        "bench.categories=[multi_turn_base,memory_rec_sum]",
        "trainer.max_steps=2",
        "eval.limit=3",
        "eval.before=false",
        "rollout.max_turns=4",
        "rollout.max_turn_tokens=24",
        "rollout.max_prompt_tokens=6000",
        "hardware.threads=1",
        f"runs_dir={tmp_path}",
        "run_id=here",
    ]
    done = subprocess.run([sys.executable, "-m", "agentrl", *overrides], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(next(tmp_path.glob("*/here")))
    summary = json.loads(run.summary_path.read_text())
    assert summary["steps"] == 2 and "solved" in summary["eval"]["after"]
    items = run.records(run.eval_dir / "after.jsonl")
    assert {item["groups"]["category"] for item in items} <= {"multi_turn_base", "memory_rec_sum"}
    assert all(item["messages"][0]["role"] == "assistant" for item in items)
