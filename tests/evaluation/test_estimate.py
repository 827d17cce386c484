"""The estimate before a run: by hand for the paper's, and sizes of models that lie on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agentrl.benches import load_bench
from agentrl.config.cache import cached_bytes
from agentrl.core.errors import UserError
from agentrl.evaluation.estimate import check_tasks, count_parameters, estimate, most_memory
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.rollout.sampler import Request
from agentrl.rollout.tokens import local_engine
from tests.support.bench_files import bench_keys
from tests.support.helpers import CONF, composed

CACHE = "KV cache"


def test_estimate_of_the_papers_run() -> None:
    # 2000 tasks / 256 a batch = 7 whole batches, 3 epochs = 21 batches of 8 updates of 32 prompts x 8 rollouts.
    result = estimate(composed("algo=pact", "model=qwen3-4b", "hardware=gpu", "bench.train_tasks=2000"))
    assert (result.rollout_batches, result.updates) == (21, 168)
    assert result.sequences == 168 * 32 * 8
    assert result.rollout_tokens == 21 * 256 * 8 * 23000
    # float32 weights, gradients, two moments and a reference: 5 x 4 GB x (1e9 / 2**30)
    assert result.memory_gb is not None
    cache = result.memory_gb.pop(CACHE)
    assert sum(result.memory_gb.values()) == pytest.approx(5 * 4 * 4.0e9 / 2**30)
    # Four episodes of 30000 tokens; keys and values of 36 layers, 8 heads, 128 wide, in the bfloat16 of hardware=gpu.
    assert cache == pytest.approx(4 * 30000 * 2 * 36 * 8 * 128 * 2 / 2**30)


def test_the_cache_is_counted_where_this_process_samples() -> None:
    def gigabytes(*keys: str) -> float:
        found = estimate(composed("algo=pact", "model=qwen3-4b", "bench.train_tasks=2000", *keys)).memory_gb
        assert found is not None
        return found[CACHE]

    token = 2 * 36 * 8 * 128 * 4 / 2**30  # in float32, on a CPU
    assert gigabytes("rollout.cache_tokens=70000") == pytest.approx(70000 * token)
    short = ("rollout.max_prompt_tokens=1000", "rollout.max_completion_tokens=1000")
    assert gigabytes(*short) == pytest.approx(65536 * token)
    few = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "eval.batch=3")
    assert gigabytes(*short, *few) == pytest.approx(16 * 2000 * token)  # two groups of eight rollouts
    assert gigabytes(*short, *few, "hardware.processes=2") == pytest.approx(8 * 2000 * token)
    assert gigabytes("vllm.mode=server") == 0
    sampled_by_nobody = ("algo=sft", "eval.before=false", "eval.after=false")
    assert estimate(composed("model=qwen3-4b", *sampled_by_nobody)).memory_gb[CACHE] == 0  # type: ignore[index]


def test_gradients_and_cache_are_never_there_together() -> None:
    parts = {"weights": 4.0, "gradients": 3.0, "optimizer": 6.0, "reference": 4.0, CACHE: 1.0}
    assert most_memory(parts) == 17.0 and most_memory({**parts, CACHE: 5.0}) == 19.0


@pytest.mark.parametrize("keys", [(), ("model.dtype=bfloat16",), ("hardware.bf16=true",)])
def test_a_token_of_the_cache_takes_the_bytes_that_are_counted(keys: tuple[str, ...]) -> None:
    config = composed("algo=eval", "model=tiny", "rollout.max_turn_tokens=2", "rollout.max_turns=1", *keys)
    (task,) = load_bench(config.bench).tasks("test", 1)
    engine = local_engine(config, load_chat(config.model, needs_of([task])), load_model(config.model))
    with engine.sampler.session(None) as session:
        session.sample([Request(0, list(range(5, 40)), 2)])
        shelf = session._rows  # type: ignore[attr-defined]
        slots = shelf.rows * shelf.width
        taken = sum(one.numel() * one.element_size() for pair in shelf._layers.values() for one in pair)
    assert slots > 0 and taken == slots * (cached_bytes(config) or 0)


def test_every_hub_model_has_a_known_cache() -> None:
    for file in (CONF / "model").glob("*.yaml"):
        path: Any = yaml.safe_load(file.read_text())["path"]
        if path != "???":
            assert cached_bytes(composed(f"model={file.stem}")), file


def test_estimate_counts_a_local_checkpoint(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}, "__metadata__": {}}'
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(60))
    config = composed(f"model.path={tmp_path}")
    assert count_parameters(config) == 15
    (tmp_path / "model.safetensors").write_bytes(b"\x05")
    assert count_parameters(config) is None


@pytest.mark.parametrize("model", ["tiny", "tiny_hif"])
def test_the_packaged_models_are_counted(model: str) -> None:
    """By files that hold float32 weights and little else."""
    size = (CONF.parent / f"agentrl/tiny/{model}/model.safetensors").stat().st_size
    assert count_parameters(composed(f"model.path=builtin:{model}")) == pytest.approx(size / 4, rel=0.05)


def test_every_hub_model_has_a_known_size() -> None:
    for file in (CONF / "model").glob("*.yaml"):
        path: Any = yaml.safe_load(file.read_text())["path"]
        if path != "???" and not path.startswith("builtin:"):
            assert count_parameters(composed(f"model={file.stem}")), file


# --- tasks ----------------------------------------------------------------------------------------------------------


def episodes(*keys: str) -> int:
    return estimate(composed("algo=eval", "model=qwen3-1.7b", *keys)).eval_episodes


@pytest.mark.parametrize(
    ("categories", "train", "test"),
    [
        ("multi_turn", 640, 160),
        ("multi_turn_base", 160, 40),
        ("web_search", 160, 40),
        ("multi_turn_base,web_search", 320, 80),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_bfcl_counts_the_chosen_categories(
    categories: str, train: int, test: int, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        pytest.importorskip("bfcl_eval")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = composed("model=qwen3-1.7b", "bench=bfcl", f"bench.categories=[{categories}]", "bench.web=replay")
    bench = load_bench(config.bench)
    assert (bench.size("train"), bench.size("test")) == (train, test)


def test_bfcl_leaves_out_what_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bfcl_eval")
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    assert episodes("bench=bfcl", "bench.categories=[multi_turn_base,web_search]") == 40
    with pytest.raises(UserError, match="none can run here"):
        episodes("bench=bfcl", "bench.categories=[web_search]")


@pytest.mark.slow
def test_every_bench_is_counted_as_it_is_divided(tmp_path: Path) -> None:
    """In training and in evaluation; a suite for evaluation alone has nothing to train on."""
    for bench, keys in bench_keys(tmp_path).items():
        own = [key.replace(f"{bench}.", "bench.", 1) for key in keys]
        config = composed(f"bench={bench}", "algo=eval", "model=qwen3-1.7b", *own)
        loaded = load_bench(config.bench)
        assert estimate(config).eval_episodes == len(loaded.tasks("test")) > 0, bench
        whole = getattr(config.bench, "test_fraction", 0) == 1 or bench == "ftrl"
        if not whole:
            assert loaded.size("train") == len(loaded.tasks("train")), bench


def test_an_evaluation_trains_nothing() -> None:
    result = estimate(composed("algo=eval", "eval.limit=7", "eval.samples=3"))
    assert (result.train_tasks, result.updates, result.sequences, result.trained_tokens) == (0, 0, 0, 0)
    assert result.eval_episodes == 21 and list(result.memory_gb or {}) == ["weights", CACHE]


def test_a_file_of_traces_is_read_before_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("# Traces\n")
    with pytest.raises(UserError, match=r"traces\.jsonl, line 1 is not JSON \(column 1, Expecting value\)"):
        check_tasks(composed(f"traces={tmp_path / 'traces.jsonl'}"))
