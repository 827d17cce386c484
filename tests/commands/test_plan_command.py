"""`agentrl plan`: what it prints, its exit code, and what it refuses. No hub and no GPU is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrl.commands.plan import duration
from agentrl.models import hub
from tests.support.command_line import agentrl

FITS = ("algo=grpo", "model=qwen3-0.6b", "bench=minihop", "hardware=gpu", "prompt=500", "completion=300")


def test_a_plan_is_printed(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "plan", *FITS, "price=2")
    assert done.returncode == 0, done.stderr
    for text in ("1 x H100 80 GB", "expected", "at most", "GPU-hours", "cost", "It fits.", "docs/plan.md"):
        assert text in done.stdout
    assert "500 + 300" in done.stdout and "7,000 + 23,000" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_gets_exit_code_1_and_proposals(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "plan", "algo=grpo", "model=qwen3-4b", "bench=minihop", "hardware=gpu", "gpu=l4")
    assert done.returncode == 1
    assert "Does not fit: update needs" in done.stdout and "It fits with:" in done.stdout
    assert "price=... (of a GPU-hour)" in done.stdout and "prompt=... completion=..." in done.stdout


def test_json_holds_the_same(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "plan", *FITS, "--json", "gpu=a100", "price=1.5")
    found = json.loads(done.stdout)
    costs = found["costs"]["expected"]
    assert found["gpu"]["title"] == "A100 80 GB" and found["problems"] == []
    assert costs["price"] == pytest.approx(1.5 * costs["gpu_hours"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hardware=cpu",), "hardware=cpu: is no GPU; plan for hardware=gpu, multi_gpu or slurm"),
        (("gpu=h1000",), "gpu=h1000: is not known; did you mean h100?"),
        (("gpu=",), "gpu='': is not known; choose from a10g, "),
        (("price=0",), "price=0: must be a number above 0"),
        (("completion=300",), "give both prompt=... and completion=..."),
        (("mfu=40",), "mfu=40: must be a number between 0 and 1, e.g. 0.4"),
        (("mfu=40%",), "mfu=40%: must be a number between 0 and 1"),
        (("prompt=0.1", "completion=300"), "prompt=0.1: must be a number of tokens, at least 1"),
        (("prompt=9000", "completion=300"), "prompt=9,000: is above rollout.max_prompt_tokens=4,096; raise that key"),
        (("prompt=90", "completion=1e9"), "completion=1,000,000,000: is above rollout.max_completion_tokens="),
        (
            ("algo=pact", "prompt=9", "completion=9", "trace=1e9"),
            "trace=1,000,000,000: is above algo.trace.max_tokens=",
        ),
        (("sweep=pact_table1",), "sweep=... describes several runs, and this command takes one"),
        (("like=nowhere", "prompt=3"), "like=nowhere: gives the lengths already; leave out prompt"),
        (("trainer.minibatch_prompts=7",), "trainer.minibatch_prompts=7"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    keys = dict(text.split("=", 1) for text in ("algo=grpo", "bench=minihop", "hardware=gpu", *arguments))
    done = agentrl(tmp_path, "plan", *(f"{key}={value}" for key, value in keys.items()))
    assert done.returncode == 2 and words in done.stderr


def test_several_machines_need_no_meeting_point_to_be_planned(tmp_path: Path) -> None:
    several = ("hardware=multi_gpu", "hardware.nodes=2", "hardware.processes=8")
    done = agentrl(tmp_path, "plan", *[key for key in FITS if key != "hardware=gpu"], *several)
    assert done.returncode == 0, done.stderr


def test_a_hub_out_of_reach_ends_in_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "explain_no_connection", lambda address: "no route to host")
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    hub._hub_refusal.cache_clear()
    done = agentrl(tmp_path, "plan", "model=some/model", "bench=minihop", "hardware=gpu")
    hub._hub_refusal.cache_clear()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be reached (no route to host)" in done.stderr and "name a preset or a local directory" in done.stderr


def test_a_model_of_the_hub_is_planned_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json is in the hub's cache, and the hub is out of reach for its size."""
    content = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    content |= {"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True}
    revision = "a" * 40
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision / "config.json").write_text(json.dumps(content))
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ours = [key for key in FITS if not key.startswith("model=")]
    done = agentrl(tmp_path, "plan", *ours, "model=some/model", "--json")
    assert done.returncode == 0, done.stderr
    known = agentrl(tmp_path, "plan", *FITS, "--json")
    assert json.loads(done.stdout)["memory"] == json.loads(known.stdout)["memory"]


def test_rows_without_work_are_left_out(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "plan", "algo=eval", "model=qwen3-0.6b", "bench=xstest", "hardware=gpu", "gpu=H100")
    assert done.returncode == 0, done.stderr
    assert "evaluation" in done.stdout and "GPU-hours" in done.stdout
    assert "updates" not in done.stdout and "forward and backward" not in done.stdout


def test_a_short_run_has_more_than_0_hours(tmp_path: Path) -> None:
    keys = ("algo=sft", "model=tiny", "bench=minihop", "hardware=gpu", "trainer.max_steps=1", "price=2", "eval.limit=4")
    done = agentrl(tmp_path, "plan", *keys)
    assert done.returncode == 0 and "run of 1 batch, 1 update " in done.stdout, done.stdout
    amounts = [float(line.split("│")[2]) for line in done.stdout.splitlines() if "GPU-hours" in line or "cost" in line]
    assert len(amounts) == 2 and 0 < amounts[0] < 0.05 and amounts[1] == pytest.approx(2 * amounts[0], rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (99.9, "99.9 s"), (270, "4 min 30 s"), (25_920, "7 h 12 min"), (302_400, "3.5 days")],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text
