"""HIPO with a judge behind HTTP, end to end: a budget that ends, a raised one that resumes, an account that is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.judge_server import JudgeServer

KEY = "judge-key-7f3a9c1e5b"
SMALL = (
    *(
        "algo=hipo",
        "bench=pairs",
        "model=tiny_hif",
        "hardware.threads=1",
        "trainer.max_steps=2",
        "trainer.save_steps=1",
    ),
    *("trainer.prompts_per_batch=4", "trainer.minibatch_prompts=4"),
    *("rollout.num_generations=2", "rollout.max_completion_tokens=8", "rollout.max_prompt_tokens=200"),
    *("algo.kl_coef=0", "eval.limit=4", "eval.samples=1"),
)


def agentrl(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl", f"runs_dir={folder / 'runs'}", *SMALL]
    judge = ["judge=openai", "judge.model=m", f"judge.base_url={url}", "judge.api_key_env=MY_JUDGE_KEY"]
    pairs = f"bench.path={folder / 'pairs.jsonl'}"
    environment = {**os.environ, "MY_JUDGE_KEY": KEY}
    return subprocess.run(
        [*command, pairs, *judge, *more], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_a_budget_ends_a_run_and_a_larger_one_resumes_it(tmp_path: Path) -> None:
    rows = [{"system": f"Begin with w{n}.", "user": f"Name a{n}.", "kind": k} for n in range(12) for k in KINDS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with JudgeServer() as server:
        stopped = agentrl(tmp_path, server.url, "judge.max_requests=20")
        assert stopped.returncode == 2
        assert "judge.max_requests=20 is spent" in stopped.stderr and "raise it" in stopped.stderr
        assert sum(server.served.values()) == 20
        resumed = agentrl(tmp_path, server.url, "judge.max_requests=500")
        assert resumed.returncode == 0, resumed.stderr
        assert all(count == 1 for count in server.served.values())  # nothing is paid for twice
        served = sum(server.served.values())
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")  # one run directory: the budget is not part of what it is
    assert json.loads(summary.read_text())["eval"]["after"]["r_sys"]["n"] == 4
    last = json.loads((summary.parent / "judge.jsonl").read_text().splitlines()[-1])
    assert last["spent_requests"] == served and last["missing"] == 0
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


KINDS = ("conflict", "aligned")
