"""Runs that train through a real `vllm serve`, on a CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_process import Vllm, fresh_model, untied_copy, vllm_serving

pytestmark = pytest.mark.vllm
SMALL = (
    *("vllm.mode=server", "hardware.threads=1", "trainer.max_steps=2", "eval.before=false", "eval.limit=8"),
    *("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2"),
)
SERVE = ("--logprobs-mode", "processed_logprobs", "--max-model-len", "4608")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """The tiny model with an output layer of its own."""
    folder = tmp_path_factory.mktemp("served")
    with vllm_serving(untied_copy("tiny", folder / "model"), folder / "server", *SERVE) as server:
        yield server


def agentrl(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **how)


def trained(server: Vllm, runs: Path, *arguments: str) -> Path:
    """The directory of a run that must complete."""
    done = agentrl(*SMALL, f"vllm.url={server.url}", f"runs_dir={runs}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (status,) = runs.glob("*/[!.]*/status.json")
    assert json.loads(status.read_text())["status"] == "completed"
    return status.parent


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_metrics(run: Path, steps: int = 2, items: int = 8) -> None:
    """The sampler was the policy of each step, and the policy moved."""
    metrics = metrics_of(run)
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    for row in metrics:
        assert 0 <= row["sampler/kl"] < 1e-6 and row["sampler/ratio_mean"] == pytest.approx(1, abs=1e-3)
        assert 1 <= row["sampler/ratio_max"] + 1e-6 < 1.01
    assert any(row["grad_norm"] > 0 for row in metrics)
    assert len((run / "eval" / "after.jsonl").read_text().splitlines()) == items
    assert (run / "plots" / "sampler_ratio.png").is_file()


def test_pact_trains_through_vllm_and_gets_its_own_weights(served: Vllm, tmp_path: Path) -> None:
    log = served.directory / "server.log"
    before = log.read_text().count('"POST /collective_rpc HTTP/1.1" 200')
    run = trained(served, tmp_path, "algo=pact")
    check_metrics(run)
    assert log.read_text().count('"POST /collective_rpc HTTP/1.1" 200') == before + 3  # at the start, after each update
    assert not list(run.glob("**/vllm/*"))  # the files that carried them
    # Greedily the trained model says in this process what it said through vLLM.
    done = agentrl("eval", f"model={run}", "bench=minihop", "eval.limit=8", f"runs_dir={tmp_path / 'here'}")
    assert done.returncode == 0, done.stderr
    (here,) = (tmp_path / "here").glob("*/*/eval/after.jsonl")
    said = [
        {item["id"]: item["messages"] for item in map(json.loads, file.read_text().splitlines())}
        for file in (here, run / "eval" / "after.jsonl")
    ]
    assert said[0] == said[1]


def test_the_next_batch_is_sampled_while_one_trains(served: Vllm, tmp_path: Path) -> None:
    log = served.directory / "server.log"
    before = log.read_text().count('"POST /collective_rpc HTTP/1.1" 200')
    faster = ("rollout.ahead=1", "trainer.max_steps=3", "trainer.learning_rate=1e-3", "trainer.warmup_steps=0")
    run = trained(served, tmp_path, "algo=grpo", *faster)
    rows = metrics_of(run)
    assert [row["sampler/behind"] for row in rows] == [0, 1, 1]
    assert rows[0]["sampler/ratio_max"] < 1.01 and max(row["sampler/ratio_max"] for row in rows[1:]) > 1.02
    # At the start, for the third batch, and for the evaluation; each was compared with the trainer.
    assert log.read_text().count('"POST /collective_rpc HTTP/1.1" 200') == before + 3


def test_hipo_trains_through_vllm_with_the_top_p_of_the_paper(tmp_path: Path) -> None:
    # vLLM's attention on a CPU has no heads of 16, which tiny_hif has.
    model = fresh_model("tiny_hif", tmp_path / "model", head_dim=32, tie_word_embeddings=False)
    with vllm_serving(model, tmp_path / "server", *SERVE) as server:
        paper = ("rollout.temperature=0.7", "rollout.top_p=0.9")  # which the preset of the tiny model changes
        run = trained(server, tmp_path / "runs", "algo=hipo", f"model.path={model}", *paper)
        check_metrics(run, items=16)


def test_adapters_reach_vllm_as_they_are_even_beside_a_tied_output_layer(tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[2] / "agentrl" / "tiny" / "tiny"
    with vllm_serving(checkpoint, tmp_path, *SERVE, "--enable-lora", "--max-lora-rank", "16") as server:
        run = trained(server, tmp_path / "runs", "algo=grpo", "model/lora=on", "trainer.learning_rate=1e-2")
        check_metrics(run)
        log = (tmp_path / "server.log").read_text()
        assert log.count('"POST /v1/load_lora_adapter HTTP/1.1" 200') == 3
        assert log.count('"POST /v1/unload_lora_adapter HTTP/1.1" 200') == 2 and "POST /collective_rpc" not in log
        # All weights would not do here: the server keeps its old output layer, and is refused before the run is made.
        refused = agentrl(*SMALL, f"vllm.url={server.url}", f"runs_dir={tmp_path / 'others'}")
        assert refused.returncode == 2 and "keeps the old output layer" in refused.stderr
        assert not (tmp_path / "others").exists()


STALE = """
import sys
from agentrl.endpoint.vllm import VllmServer
take, taken = VllmServer.reload, []
def once(self, folder):
    taken.append(folder)
    if len(taken) == 1:
        take(self, folder)
VllmServer.reload = once
from agentrl.runner.worker import main
from pathlib import Path
sys.exit(main(Path(sys.argv[1])))
"""


def test_a_server_that_keeps_its_old_weights_is_found_out(served: Vllm, tmp_path: Path) -> None:
    """The server says 200 and has done nothing: the comparison after the first update stops the run."""
    chosen = (*SMALL, f"vllm.url={served.url}", f"runs_dir={tmp_path}", "trainer.learning_rate=1e-2")
    assert agentrl(*chosen, "dry_run=true", "trainer.warmup_steps=0", "name=stale").returncode == 0
    (config,) = tmp_path.glob("stale/*/config.yaml")
    done = subprocess.run(
        [sys.executable, "-c", STALE, str(config.parent)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("agentrl: error: ")]
    assert len(said) == 1 and "after new weights the log-probs of vLLM and of the trainer differ by" in said[0]


def test_a_run_whose_server_is_killed_says_so_and_goes_on_where_it_is_started_again(tmp_path: Path) -> None:
    model = untied_copy("tiny", tmp_path / "model")
    chosen = (*SMALL, f"runs_dir={tmp_path / 'runs'}", "trainer.max_steps=4", "trainer.save_steps=1", "algo=grpo")
    with vllm_serving(model, tmp_path / "first", *SERVE) as server:
        command = [sys.executable, "-m", "agentrl", *chosen, f"vllm.url={server.url}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            log = tmp_path / "first" / "server.log"
            while not list((tmp_path / "runs").glob("*/*/checkpoints/checkpoint-1")):
                assert process.poll() is None and time.sleep(0.05) is None
            before = log.read_text().count("/v1/completions")
            while log.read_text().count("/v1/completions") < before + 3:  # in the middle of the next rollout
                assert process.poll() is None and time.sleep(0.02) is None
            killed = time.monotonic()
            kill_server(server)
            said = process.communicate(timeout=60)
            assert time.monotonic() - killed < 20
    assert process.returncode == 2, said
    assert f"vllm.url={server.url}: the vLLM server failed (" in said[1] and "Traceback" not in said[1]
    with vllm_serving(model, tmp_path / "second", *SERVE, port=server.port) as again:
        done = agentrl(*chosen, f"vllm.url={again.url}")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").glob("*/*")
    assert "resuming from" in done.stdout
    check_metrics(run, steps=4)


def kill_server(server: Vllm) -> None:
    """kill -9, as the kernel does where memory runs out: the process and its engine."""
    named = re.search(r"APIServer pid=(\d+)", (server.directory / "server.log").read_text())
    assert named is not None
    os.killpg(os.getpgid(int(named[1])), signal.SIGKILL)
