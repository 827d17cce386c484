"""The estimate before a run: by hand for the paper's, and sizes of models that lie on this disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.benches import load_bench
from agentrl.config.cache import cached_bytes
from agentrl.config.side_benches import SideKeys
from agentrl.core.errors import UserError
from agentrl.cost.estimate import estimate
from agentrl.cost.memory import KV
from agentrl.evaluation.tasks import check_tasks
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.rollout.sampler import Request
from agentrl.rollout.tokens import local_engine
from tests.support.bench_files import bench_keys
from tests.support.helpers import CONF, composed


def test_estimate_of_the_papers_run() -> None:
    # 2000 tasks / 256 a batch = 7 whole batches, 3 epochs = 21 batches of 8 updates of 32 prompts x 8 rollouts.
    result = estimate(composed("algo=pact", "model=qwen3-4b", "hardware=gpu", "bench.train_tasks=2000"))
    assert (result.rollout_batches, result.updates) == (21, 168)
    assert result.sequences == 168 * 32 * 8
    assert result.rollout_tokens == 21 * 256 * 8 * 23000
    # a padded row of all 30,000 tokens for each rollout; for 60% of the prompts 4,096 tokens of h* in each row, and h*
    # after the prompt
    assert result.trained_tokens == round(168 * 32 * (8 * 30000 + 0.6 * (8 * 4096 + 7000 + 4096)))
    assert result.memory is not None
    # Four episodes of 30000 tokens; keys and values of 36 layers, 8 heads, 128 wide, in the bfloat16 of hardware=gpu.
    assert result.memory.phases["sampling"][KV] == 4 * 30000 * 2 * 36 * 8 * 128 * 2


def test_the_cache_is_counted_where_this_process_samples() -> None:
    def cached(*keys: str) -> float:
        found = estimate(composed("algo=pact", "model=qwen3-4b", "bench.train_tasks=2000", *keys)).memory
        assert found is not None
        return found.phases["sampling"].get(KV, 0)

    token = 2 * 36 * 8 * 128 * 4  # in float32, on a CPU
    assert cached("rollout.cache_tokens=70000") == 70000 * token
    assert cached("rollout.cache_tokens=1") == 30000 * token  # one episode is always held
    short = ("rollout.max_prompt_tokens=1000", "rollout.max_completion_tokens=1000")
    assert cached(*short) == 65536 * token
    few = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "eval.batch=3")
    assert cached(*short, *few) == 16 * 2000 * token  # two groups of eight rollouts
    assert cached(*short, *few, "hardware.processes=2") == 8 * 2000 * token
    assert cached("vllm.mode=server") == 0
    assert cached("algo=sft", "eval.before=false", "eval.after=false") == 0


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


@pytest.mark.parametrize("model", ["tiny", "tiny_hif"])
def test_the_packaged_models_are_counted(model: str) -> None:
    """By files that hold float32 weights and little else."""
    size = (CONF.parent / f"agentrl/tiny/{model}/model.safetensors").stat().st_size
    assert estimate(composed(f"model.path=builtin:{model}")).parameters == pytest.approx(size / 4, rel=0.05)


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
        whole = getattr(config.bench, "test_fraction", 0) == 1 or bench == "ftrl" or isinstance(config.bench, SideKeys)
        if not whole:
            assert loaded.size("train") == len(loaded.tasks("train")), bench


def test_an_evaluation_trains_nothing() -> None:
    result = estimate(composed("algo=eval", "eval.limit=7", "eval.samples=3"))
    assert (result.train_tasks, result.updates, result.sequences, result.trained_tokens) == (0, 0, 0, 0)
    assert result.eval_episodes == 21 and result.memory is not None
    assert {name: list(parts) for name, parts in result.memory.phases.items()} == {
        "sampling": ["weights", KV, "libraries"]
    }


def test_a_file_of_traces_is_read_before_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("# Traces\n")
    with pytest.raises(UserError, match=r"traces\.jsonl, line 1 is not JSON \(column 1, Expecting value\)"):
        check_tasks(composed(f"traces={tmp_path / 'traces.jsonl'}"))
