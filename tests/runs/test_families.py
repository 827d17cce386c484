"""A whole run on each architecture: LoRA, stopped and resumed, evaluated, merged."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentrl.commands import merge
from agentrl.config.compose import compose
from agentrl.models.loading import load_model
from agentrl.runner.start import start
from agentrl.store.run import RunDirectory
from tests.support.families import FAMILIES, family_checkpoint
from tests.support.helpers import changed, small, work_in_this_process

SHORT = (
    "rollout.max_turns=1",
    "rollout.max_completion_tokens=24",
    "rollout.max_turn_tokens=24",
    "rollout.num_generations=2",
    "eval.before=false",
    "eval.limit=1",
    "trainer.max_steps=2",
    "trainer.save_steps=1",
    "trainer.learning_rate=0.01",
    "faults.no_signal=warn",
    "model/lora=on",
)


INT8 = pytest.mark.skipif(find_spec("torchao") is None, reason="model.quantize=int8 needs the extra torchao")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "algo", "key"),
    [
        *((family, algo, "model.dtype=float32") for family in FAMILIES for algo in ("sft", "grpo")),
        ("qwen2", "grpo", "model.dtype=bfloat16"),
        pytest.param("llama", "grpo", "model.quantize=int8", marks=INT8),
    ],
)
def test_adapters_are_trained_resumed_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, algo: str, key: str
) -> None:
    work_in_this_process(monkeypatch)
    base = tmp_path / "base"
    family_checkpoint(base, family)
    config = small(
        f"algo={algo}", "model=custom", f"model.path={base}", "model.name=x", f"runs_dir={tmp_path}", key, *SHORT
    )
    assert start(config) == 0
    (path,) = (tmp_path / config.name).iterdir()
    run = RunDirectory(path)
    metrics = run.read_metrics()
    assert all(value == value for record in metrics for value in record.values() if isinstance(value, float))
    adapter = load_file(path / "model" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)

    checkpoints = sorted(folder.name for folder in run.checkpoints_dir.iterdir())
    assert checkpoints[-1] == "checkpoint-2" and "checkpoint-1" in checkpoints
    shutil.rmtree(run.checkpoints_dir / "checkpoint-2")
    shutil.rmtree(path / "model")
    run.summary_path.unlink()
    run.set_status("interrupted")
    assert start(config) == 0
    resumed = load_file(path / "model" / "adapter_model.safetensors")
    for name, weight in adapter.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-5, rtol=1e-4, msg=name)

    assert merge.main([str(path)]) == 0
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        said = [
            load_model(changed(config.model, path=str(path / name), quantize=None))(ids).logits
            for name in ("model", "merged")
        ]
    size = 1e-4 if config.model.dtype == "float32" else 0.1
    torch.testing.assert_close(said[0], said[1], atol=size, rtol=size)
    assert json.loads(run.summary_path.read_text())["steps"] == 2


@pytest.mark.slow
def test_a_saved_adapter_of_16_bits_is_evaluated_as_at_the_end_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled replies: the same seeds draw the same tokens only if the policy is the same."""
    work_in_this_process(monkeypatch)
    base = tmp_path / "base"
    family_checkpoint(base, "qwen2")  # its weights are random, so a little rounding changes what is drawn
    keys = ("model.dtype=bfloat16", "eval.temperature=1", "eval.samples=16", f"runs_dir={tmp_path}")
    assert start(small("algo=grpo", "model=custom", f"model.path={base}", *SHORT, *keys, "name=run", "run_id=a")) == 0
    run = RunDirectory(tmp_path / "run" / "a")
    same_tasks = (*SHORT[:3], "bench.test_tasks=4", "bench.train_tasks=12", "eval.limit=1")
    assert start(compose(["algo=eval", f"model={run.path}", *same_tasks, *keys, "name=again", "run_id=a"])) == 0
    again = RunDirectory(tmp_path / "again" / "a")
    episodes = [[line["messages"] for line in one.records(one.eval_dir / "after.jsonl")] for one in (run, again)]
    assert len(episodes[0]) == 16 and episodes[0] == episodes[1]
