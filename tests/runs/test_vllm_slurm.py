"""The batch script of hardware=slurm, run whole by stand-ins for SLURM's commands, with a real vLLM on a CPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.runs.test_slurm import Cluster
from tests.support.vllm_process import SETTINGS, untied_copy, vllm_python

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
LONGER = ("trainer.max_steps=6", "trainer.save_steps=0", "rollout.max_turn_tokens=32", "eval.after=true")


def test_a_job_with_a_real_server_is_killed_and_submitted_again(tmp_path: Path) -> None:
    """Two machines train; the server dies in a rollout, which costs that rollout batch and no update."""
    model = untied_copy("tiny", tmp_path / "model")
    cluster = Cluster(tmp_path, AGENTRL_TEST_VLLM=vllm_python(), **SETTINGS)
    chosen = (f"model.path={model}", *LONGER)
    assert "Submitted as SLURM job 101" in cluster.agentrl(*chosen)
    cluster.wait(lambda: len(cluster.run.read_metrics()) >= 2)
    asked = cluster.server_log().count("/v1/completions")
    cluster.wait(lambda: cluster.server_log().count("/v1/completions") > asked)  # in the next rollout
    os.kill(int((tmp_path / "vllm.pid").read_text()), signal.SIGKILL)
    cluster.wait(lambda: cluster.done(101))
    assert cluster.codes(101)[0] != 0 and cluster.run.status()["status"] == "failed", cluster.log()
    assert cluster.run.status()["error"].startswith("vllm.url=http://127.0.0.3:"), cluster.log()
    before = cluster.run.read_metrics()
    assert 2 <= len(before) < 6 and (cluster.run.checkpoints_dir / f"checkpoint-{len(before)}").is_dir()
    assert "Submitted as SLURM job 102" in cluster.agentrl(*chosen)
    cluster.wait(lambda: cluster.done(102))
    assert cluster.codes(102) == [0] and cluster.run.status()["status"] == "completed", cluster.log()
    metrics = cluster.run.read_metrics()
    assert metrics[: len(before)] == before and [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    for row in metrics:  # a real vLLM rounds otherwise than the trainer
        assert 0 <= row["sampler/kl"] < 1e-6 and 1 <= row["sampler/ratio_max"] + 1e-6 < 1.01
    assert len(cluster.run.items()) == 2 and cluster.server_is_gone()
