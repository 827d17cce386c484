"""Every way to share a model out among processes, with every kind of method: trained, stopped, resumed, saved whole."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.runner.launch import worker_command, worker_environment
from agentrl.store.run import RunDirectory
from agentrl.trainers.sharding import check_sharding
from tests.support.helpers import small

ROOT = Path(__file__).resolve().parents[2]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
WAYS = ["ddp", "fsdp2", *(pytest.param(zero, marks=needs_deepspeed) for zero in ("zero2", "zero3"))]
METHODS = {
    "pact": ("algo=pact", "algo.kl_coef=0.01"),
    "grpo": ("algo=grpo",),
    "hipo": ("algo=hipo", "algo.kl_coef=0.01"),
    "sft": ("algo=sft",),
    "pact-lora": ("algo=pact", "model/lora=on", "algo.kl_coef=0.01"),
    "sft-lora": ("algo=sft", "model/lora=on"),
}
FEW = ("trainer.max_steps=2", "trainer.save_steps=1", "trainer.tokens_per_batch=500", "hardware.processes=2")


def create(where: Path, way: str, *overrides: str) -> tuple[RunDirectory, Config]:
    chosen = (f"runs_dir={where}", "bench.test_tasks=3", *FEW, "hardware.threads=1", *overrides)
    config = small(*chosen, f"hardware.accelerate_config={way}")
    run = RunDirectory.create(config)
    assert run is not None
    return run, config


def work(run: RunDirectory, config: Config, **environment: str) -> subprocess.CompletedProcess[str]:
    """The run's worker, started as for GPUs; sharded, it is told that CPUs are some."""
    command = worker_command(run, config)
    if config.hardware.accelerate_config != "ddp":
        command[command.index("agentrl.runner.worker")] = "tests.support.sharded_on_cpu"
    environment = worker_environment(run, config) | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""} | environment
    del environment["AGENTRL_LOCK_HELD"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def complete(run: RunDirectory, config: Config) -> dict[str, Any]:
    """What the run leaves when its worker has been through."""
    done = work(run, config)
    assert done.returncode == 0 and run.status()["status"] == "completed", done.stdout + done.stderr
    (weights,) = (run.path / "model").glob("*model.safetensors")
    return {"metrics": run.read_metrics(), "items": run.items(), "weights": load_file(weights)}


def roll_back(run: RunDirectory, to: int) -> None:
    """As if the run had been killed after `to` updates and their checkpoint."""
    for later in range(to + 1, 3):
        shutil.rmtree(run.checkpoints_dir / f"checkpoint-{later}")
    (run.eval_dir / "after.jsonl").unlink()
    shutil.rmtree(run.path / "model")
    run.summary_path.unlink()
    run.set_status("interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_shared_out_is_trained_resumed_and_saved_whole(way: str, method: str, tmp_path: Path) -> None:
    run, config = create(tmp_path, way, *METHODS[method])
    whole = complete(run, config)
    assert len(whole["metrics"]) == 2 and len(whole["items"]) in (3, 6)  # minihif has two kinds of item
    assert whole["metrics"][0]["grad_norm"] > 0
    for resumed_at in (1, 2):  # between two updates, and after the last one
        roll_back(run, resumed_at)
        again = complete(run, config)
        assert again["metrics"] == whole["metrics"], resumed_at
        assert again["items"] == whole["items"], resumed_at
        assert again["weights"].keys() ^ whole["weights"].keys() <= {"lm_head.weight"}  # FSDP saves a tied head, too
        shared = again["weights"].keys() & whole["weights"].keys()
        assert all(again["weights"][name].equal(whole["weights"][name]) for name in shared), resumed_at


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[1:])
def test_one_process_alone_trains_and_evaluates(way: str, tmp_path: Path) -> None:
    """Its weights are wrapped as if they were shared out, but no sampler waits for another process."""
    run, config = create(tmp_path, way, "algo=pact", "hardware.processes=1")
    assert len(complete(run, config)["metrics"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[1:])
def test_a_gradient_that_is_no_number_is_noticed(way: str, tmp_path: Path) -> None:
    run, config = create(tmp_path / "stops", way, "algo=grpo", "eval.before=false", "eval.after=false")
    assert work(run, config, POISONED_UPDATE="2").returncode != 0
    assert "the gradient of update 2 is not finite, and faults.nonfinite=stop" in run.status()["error"]
    skipping = ("algo=grpo", "eval.before=false", "eval.after=false", "faults.nonfinite=skip")
    run, config = create(tmp_path / "skips", way, *skipping)
    done = work(run, config, POISONED_UPDATE="2")
    assert done.returncode == 0 and "update 2 is not finite: the update is skipped" in done.stdout, (
        done.stdout + done.stderr
    )
    trained, kept = (
        load_file(folder / "model.safetensors") for folder in (run.path / "model", run.checkpoints_dir / "checkpoint-1")
    )
    assert all(kept[name].equal(weights) for name, weights in trained.items())


def test_an_environment_that_drops_the_plugin_is_refused() -> None:
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
    for way, dropped in (("ddp", False), ("fsdp2", True), ("zero3", True)):
        hardware = small(f"hardware.accelerate_config={way}").hardware
        if dropped:
            with pytest.raises(UserError, match=f"hardware.accelerate_config={way} asks for .*, but accelerate has"):
                check_sharding(trainer, hardware)
        else:
            check_sharding(trainer, hardware)
