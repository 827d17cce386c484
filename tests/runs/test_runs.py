"""Whole runs through the command line: real processes, real signals, real checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agentrl.store.checkpoints import find_damage

SMALL = (
    "trainer.max_steps=4",
    "trainer.prompts_per_batch=2",
    "trainer.minibatch_prompts=2",
    "rollout.num_generations=4",
    "bench.train_tasks=16",
    "bench.test_tasks=6",
    "hardware.threads=1",
)


def command(runs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "agentrl", f"runs_dir={runs}", *SMALL, *overrides]


def run(runs: Path, *overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(runs, *overrides), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def only_run(runs: Path) -> Path:
    (found,) = [path.parent for path in runs.glob("*/*/config.yaml")]
    return found


def killed_copy(run: Path, runs: Path, lost: str) -> Path:
    """A copy of a run in the directory `runs`, as if the run had been killed before it wrote its checkpoint `lost`."""
    shutil.copytree(run.parent.parent, runs)
    killed = only_run(runs)
    shutil.rmtree(killed / "checkpoints" / lost)
    status = json.loads((killed / "status.json").read_text()) | {"status": "failed"}
    (killed / "status.json").write_text(json.dumps(status))
    return killed


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def pact_run(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run(runs)
    return only_run(runs)


def test_a_run_leaves_a_directory_that_a_person_can_read(pact_run: Path):
    summary = json.loads((pact_run / "summary.json").read_text())
    assert json.loads((pact_run / "status.json").read_text())["status"] == "completed"
    assert (summary["algo"], summary["model"], summary["bench"], summary["steps"]) == ("pact", "tiny", "minihop", 4)
    assert set(summary["eval"]) == {"before", "after", "difference"}
    interval = summary["eval"]["after"]["solve_rate"]
    assert set(interval) == {"mean", "lo", "hi", "n", "bootstrap_lo", "bootstrap_hi"}
    assert len(lines(pact_run / "eval" / "before.jsonl")) == len(lines(pact_run / "eval" / "after.jsonl")) == 6
    metrics = lines(pact_run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    expected = {"reward", "solve_rate", "loss/total", "loss/rl", "loss/sft", "anneal/level", "anneal/call_scale"}
    assert expected | {"anneal/anchored", "clip_ratio", "tools/error_rate", "lr", "grad_norm"} <= set(metrics[0])
    # 4 steps: lambda_a falls linearly from .8 towards .2, the level from L4 by the switch points .2 .4 .6 .8.
    assert [round(line["anneal/call_scale"], 3) for line in metrics] == [0.8, 0.65, 0.5, 0.35]
    assert [line["anneal/level"] for line in metrics] == [4, 3, 2, 1]
    rollout = lines(pact_run / "rollouts.jsonl")[0]
    length = len(rollout["completion_ids"])
    for name in ("tokens", "policy_mask", "turn", "component", "advantages"):
        assert len(rollout[name]) == length
    assert (pact_run / "plots" / "overview.png").stat().st_size > 1000
    assert (pact_run / "model" / "model.safetensors").is_file()
    assert {"seconds", "tokens_per_s"} <= set(lines(pact_run / "timing.jsonl")[0])


@pytest.mark.slow
def test_the_same_command_and_seed_give_the_same_metrics(pact_run: Path, tmp_path: Path):
    run(tmp_path)
    assert (only_run(tmp_path) / "metrics.jsonl").read_bytes() == (pact_run / "metrics.jsonl").read_bytes()
    run(tmp_path / "other", "seed=1")
    assert (only_run(tmp_path / "other") / "metrics.jsonl").read_bytes() != (pact_run / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_not_repeated(pact_run: Path):
    before = (pact_run / "summary.json").stat().st_mtime_ns
    done = run(pact_run.parent.parent)
    assert "seed=" in done.stdout + done.stderr  # says how to begin a new one
    assert (pact_run / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_metrics(pact_run: Path, tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(len(lines(path)) >= 1 for path in tmp_path.glob("*/*/metrics.jsonl")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    folder = only_run(tmp_path)
    assert process.returncode == 130, output
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    reached = len(lines(folder / "metrics.jsonl"))
    assert 1 <= reached < 4, "the signal came too late to test anything"
    assert (folder / "checkpoints" / f"checkpoint-{reached}" / "manifest.json").is_file()
    done = run(tmp_path)
    assert f"resuming from {folder}/checkpoints/checkpoint-{reached}" in done.stdout
    assert (folder / "metrics.jsonl").read_bytes() == (pact_run / "metrics.jsonl").read_bytes()
    before = (pact_run / "eval" / "after.jsonl").read_bytes()
    assert (folder / "eval" / "after.jsonl").read_bytes() == before


@pytest.mark.slow
def test_several_updates_a_batch_resume_between_batches(tmp_path: Path):
    several = ("trainer.prompts_per_batch=4", "trainer.save_steps=1")
    run(tmp_path / "whole", *several)
    whole = only_run(tmp_path / "whole")
    steps = sorted(int(path.name.split("-")[1]) for path in (whole / "checkpoints").glob("checkpoint-*"))
    assert steps == [2, 4], "updates 1 and 3 lie within a rollout batch"
    metrics = lines(whole / "metrics.jsonl")
    assert metrics[1]["clip_ratio"] >= 0 and metrics[1]["loss/rl"] != metrics[0]["loss/rl"]
    # A finished training whose evaluation was lost is evaluated again, not trained again.
    after = (whole / "eval" / "after.jsonl").read_bytes()
    (whole / "eval" / "after.jsonl").unlink()
    status = json.loads((whole / "status.json").read_text())
    (whole / "status.json").write_text(json.dumps(status | {"status": "interrupted"}))
    run(tmp_path / "whole", *several)
    assert (whole / "eval" / "after.jsonl").read_bytes() == after
    assert lines(whole / "metrics.jsonl") == metrics
    # Take the run back to its first checkpoint, as if it had been killed after it.
    shutil.copytree(whole.parent.parent, tmp_path / "killed")
    killed = only_run(tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "checkpoint-4")
    (killed / "eval" / "after.jsonl").unlink()
    (killed / "status.json").write_text(json.dumps(status | {"status": "interrupted"}))
    run(tmp_path / "killed", *several)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["grpo", "sft"])
def test_the_other_algorithms_run(tmp_path: Path, algo: str):
    run(tmp_path, f"algo={algo}", "trainer.max_steps=2")
    folder = only_run(tmp_path)
    assert json.loads((folder / "summary.json").read_text())["algo"] == algo
    assert len(lines(folder / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_a_trace_without_calls_stops_a_run_on_tasks_with_tools(tmp_path: Path):
    rows = [json.dumps({"task_id": f"minihop-train-{i}", "answer": "Rome", "turns": []}) + "\n" for i in range(50)]
    (tmp_path / "traces.jsonl").write_text("".join(rows))
    done = run(tmp_path, "algo=sft", f"traces={tmp_path / 'traces.jsonl'}", code=2)
    assert "makes no call, and the task has tools; add its calls or remove the line" in done.stderr


@pytest.mark.slow
def test_an_sft_run_resumes_too(tmp_path: Path):
    run(tmp_path / "whole", "algo=sft", "trainer.save_steps=2")
    whole = only_run(tmp_path / "whole")
    shutil.copytree(whole.parent.parent, tmp_path / "killed")
    killed = only_run(tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "checkpoint-4")
    status = json.loads((killed / "status.json").read_text()) | {"status": "failed"}
    (killed / "status.json").write_text(json.dumps(status))
    timing = lines(killed / "timing.jsonl")
    timing[0]["seconds"], timing[-1]["seconds"] = 1000.0, 5000.0  # the first update is kept, the last one is repeated
    (killed / "timing.jsonl").write_text("".join(json.dumps(one) + "\n" for one in timing))
    run(tmp_path / "killed", "algo=sft", "trainer.save_steps=2")
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert 1000 < json.loads((killed / "summary.json").read_text())["wall_s"] < 2000


@pytest.fixture(scope="module")
def qwen25(tmp_path_factory) -> Path:
    """A Qwen2.5-architecture checkpoint with a tokenizer of its own and Qwen2.5's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl.chat_template_utils import qwen2_5_chat_template

    folder = tmp_path_factory.mktemp("qwen2.5-test")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        [qwen2_5_chat_template] * 3,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=qwen2_5_chat_template
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_lora_on_a_local_qwen25_checkpoint_saves_an_adapter_that_loads_back(qwen25: Path, tmp_path: Path):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run(
        tmp_path,
        f"model.path={qwen25}",
        "model=qwen2.5-0.5b",
        "model/lora=on",
        "trainer.max_steps=2",
        "rollout.max_prompt_tokens=4096",
        "rollout.max_completion_tokens=64",
        "rollout.max_turn_tokens=32",
        "trainer.learning_rate=1e-2",
        "hardware=cpu",
        "model.gradient_checkpointing=false",
    )
    adapter = only_run(tmp_path) / "model"
    weights = load_file(adapter / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in weights.items()), "nothing was trained"
    base = AutoModelForCausalLM.from_pretrained(qwen25)
    ids = torch.arange(3, 40).unsqueeze(0)
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, adapter)(ids).logits
    assert not torch.allclose(plain, adapted)


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused_in_one_line(qwen25: Path, tmp_path: Path):
    wrong = tmp_path / "wrong"
    shutil.copytree(qwen25, wrong)
    config = json.loads((wrong / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 48}
    (wrong / "config.json").write_text(json.dumps(config))
    done = run(tmp_path / "runs", f"model.path={wrong}", "rollout.max_prompt_tokens=4096", code=2)
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "model.path" in line and "Traceback" not in done.stderr
    assert json.loads((only_run(tmp_path / "runs") / "status.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("path", ["/nowhere/model", pytest.param("builtin:huge", marks=pytest.mark.slow)])
def test_a_missing_checkpoint_is_refused(tmp_path: Path, path: str):
    done = run(tmp_path, f"model.path={path}", code=2)
    assert path in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        done = run(disk, "trainer.save_steps=1", code=2)
        assert "No space left" in done.stderr and "Traceback" not in done.stderr
        folder = only_run(disk)
        assert not (folder / "summary.json").exists()
        for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
            assert find_damage(checkpoint) is None
        # With room again the same command finishes the run.
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        run(disk, "trainer.save_steps=1")
        assert json.loads((folder / "status.json").read_text())["status"] == "completed"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_pact_runs_through_on_real_toolhop_rows(shared: Path, tmp_path: Path):
    data = shared / "data" / "toolhop" / "ToolHop_subset100.json"
    done = subprocess.run(
        [sys.executable, "-m", "agentrl", f"runs_dir={tmp_path}", "bench=toolhop", f"bench.path={data}",
         "trainer.max_steps=2", "eval.limit=4", "hardware.threads=1"],
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path)
    metrics = lines(folder / "metrics.jsonl")
    assert len(metrics) == 2 and any(line["loss/sft"] > 0 for line in metrics), "no mined trace was trained on"
    assert set(json.loads((folder / "summary.json").read_text())["eval"]["after"]) >= {"answer_correct", "solve_f1"}


@pytest.mark.slow
def test_pact_runs_through_on_real_ftrl_rows(shared: Path, tmp_path: Path):
    command = [
        *(sys.executable, "-m", "agentrl", f"runs_dir={tmp_path}", "algo=pact", "model=tiny", "bench=ftrl"),
        *(f"bench.path={shared / 'data' / 'ftrl' / 'test.jsonl'}", "trainer.max_steps=2", "eval.limit=6"),
        *("eval.samples=2", "eval.temperature=1", "hardware.threads=1"),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and "set bench.train_on_test=true" in refused.stderr
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    done = subprocess.run([*command, "bench.train_on_test=true"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path)
    metrics = lines(folder / "metrics.jsonl")
    assert len(metrics) == 2 and any(line["loss/sft"] > 0 for line in metrics), "no mined trace was trained on"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["eval"]["after"]) >= {"solve_p", "solve_r", "solve_f1", "pass@1", "pass@2", "pass^2"}
    parts = [part["after"]["solve_f1"]["n"] for part in summary["by"]["source"].values()]
    assert sum(parts) == summary["eval"]["after"]["solve_f1"]["n"] >= 1


@pytest.mark.slow
def test_a_truncated_data_file_is_refused(tmp_path: Path):
    broken = tmp_path / "ToolHop.json"
    broken.write_text('[{"id": 1, "question": "Wh')
    done = subprocess.run(
        [sys.executable, "-m", "agentrl", f"runs_dir={tmp_path}/runs", "bench=toolhop", f"bench.path={broken}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert str(broken) in done.stderr and "Traceback" not in done.stderr
