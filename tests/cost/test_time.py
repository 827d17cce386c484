"""The time of a rollout batch: by hand, beside what the benchmark counts, and beside what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.config.networks import KNOWN
from agentrl.config.sequences import Lengths, Tree, count_tokens
from agentrl.cost.gpus import GPUS, NETWORK
from agentrl.cost.memory import GIB, estimate_memory
from agentrl.cost.time import ATTENTION, HOST, LAUNCH, LAUNCH_ONE, MOVED, PRODUCTS, READ, VLLM_STEP, Clock
from tests.support.helpers import composed

ROOT = Path(__file__).parents[2]
H100 = GPUS["h100"]
SMALL, QWEN, LARGE = KNOWN["Qwen/Qwen3-0.6B"], KNOWN["Qwen/Qwen3-4B"], KNOWN["Qwen/Qwen3-32B"]
TOOLHOP = Lengths(prompt=1500, completion=400, sampled=400, trace=400, rollouts=8)
COMMON = ("hardware=gpu", "algo=grpo", "algo.kl_coef=0")


def clock(model: str, *keys: str, mfu: float | None = None) -> Clock:
    config = composed(f"model={model}", *COMMON, *keys)
    return Clock(config, KNOWN[config.model.path], H100, mfu)


def measured(*keys: str) -> Clock:
    """The runs of docs/performance.md on an H100: eight prompts, four an update."""
    batch = ("trainer.prompts_per_batch=8", "trainer.minibatch_prompts=4", "model.gradient_checkpointing=false")
    lengths = ("rollout.max_prompt_tokens=1500", "rollout.max_completion_tokens=400", "rollout.max_turn_tokens=400")
    return clock("qwen3-0.6b", *batch, *lengths, *keys)


@pytest.mark.parametrize(
    ("engine", "scoring", "update", "mfu"),
    [("packed", 0.66, 0.37 + 0.81, 0.137), ("compiled", 0.48, 0.27 + 0.45, 0.226)],
)
def test_the_steps_that_were_measured_are_reproduced(engine: str, scoring: float, update: float, mfu: float) -> None:
    """Constants were fitted to them, so this only shows that nothing has moved."""
    batch = measured(f"trainer.engine={engine}").batch(TOOLHOP)
    assert batch.scoring == pytest.approx(scoring, rel=0.04)
    assert batch.update == pytest.approx(update, rel=0.04) and batch.mfu == pytest.approx(mfu, rel=0.04)


def test_stock_trl_to_which_no_time_was_fitted_is_near() -> None:
    """It pads, and has one prompt in each pass. Its attention is another one."""
    batch = measured("trainer.engine=padded", "trainer.tokens_per_batch=15200").batch(TOOLHOP)
    assert batch.update == pytest.approx(0.96 + 1.96, rel=0.25)


@pytest.mark.parametrize(
    ("keys", "gib", "off"),
    [
        (("trainer.engine=padded", "trainer.tokens_per_batch=15200"), 41.7, 0.03),  # stock TRL; nothing was fitted
        (("trainer.engine=packed", "trainer.tokens_per_batch=18800"), 47.0, 0.08),  # the same
        (("trainer.engine=compiled", "trainer.tokens_per_batch=18800"), 29.7, 0.03),  # half of the activations
    ],
)
def test_the_memory_that_was_measured_is_near(keys: tuple[str, ...], gib: float, off: float) -> None:
    """What an update needs beyond the loaded model. Passes have the tokens of one prompt, or of the four that fit."""
    found = estimate_memory(measured(*keys).config, SMALL).phases["update"]
    beyond = sum(size for name, size in found.items() if name not in ("weights", "CUDA"))
    assert beyond / GIB == pytest.approx(gib, rel=off)


@pytest.mark.parametrize(("arm", "engine"), [("packed", "packed"), ("padded", "padded")])
def test_tokens_are_those_that_the_benchmark_has_forwarded(arm: str, engine: str) -> None:
    """engine.jsonl, update-300: four prompts of 300 tokens, eight rollouts of 90. Templates add a few tokens."""
    for line in (ROOT / "benchmarks" / "engine.jsonl").read_text().splitlines():
        if (record := json.loads(line))["workload"] == "update-300":
            forwarded = record["arms"][arm]["tokens"]
    trees = composed("algo=grpo").algo.update_trees(Lengths(300, 90, 90, 90, 8))
    assert forwarded["forward"] == pytest.approx(4 * count_tokens(trees, engine == "packed"), rel=0.01)


def test_operations_are_counted_as_the_benchmark_counts_them() -> None:
    """benchmarks/engine_arms.py: 6 for each weight and token, the head at completions, 12 for each pair and layer."""
    pairs = 1500**2 / 2 + 8 * (400 * 1500 + 400**2 / 2)
    wanted = 6 * (SMALL.body * 4700 + SMALL.table * 3200 + 2 * pairs * 28 * 16 * 128)
    trees = composed("algo=grpo").algo.update_trees(TOOLHOP)
    assert clock("qwen3-0.6b").operations(trees, 1, backward=True) == pytest.approx(wanted)
    # frozen weights need no gradients: a backward pass costs as much as a forward pass
    adapters = clock("qwen3-0.6b", "model/lora=on").operations(trees, 1, backward=True)
    assert adapters == pytest.approx(wanted * 2 / 3)


def test_a_forward_pass_by_hand() -> None:
    (tree,) = trees = composed("algo=grpo").algo.update_trees(TOOLHOP)
    products = (2 * QWEN.body * 4700 + 2 * QWEN.table * 3200) / (PRODUCTS * 989e12)
    attention = 4 * 36 * 32 * 128 * tree.pairs() / (ATTENTION * 989e12)
    layer = 26 * 2560 + 10 * (4096 + 1024) + 8 * 9728
    moved = MOVED["packed"] * layer * 36 * 4700 / 3350e9
    seconds = clock("qwen3-4b").passes(trees, 1, backward=False)
    assert seconds == pytest.approx(products + attention + moved + 36 * LAUNCH)
    compiled = clock("qwen3-4b", "trainer.engine=compiled").passes(trees, 1, backward=False)
    assert seconds - compiled == pytest.approx(moved * (1 - MOVED["compiled"] / MOVED["packed"]))


def test_checkpointing_and_the_head_cost_a_pass_more() -> None:
    trees = [Tree(20_000, 1, 0, 0)]  # no token goes through the head
    plain, again = (clock("qwen3-4b", f"model.gradient_checkpointing={on}") for on in ("false", "true"))
    launch = 36 * LAUNCH
    forward = plain.passes(trees, 1, backward=False) - launch
    assert plain.passes(trees, 1, backward=True) == pytest.approx(3 * forward + 2 * launch)
    assert again.passes(trees, 1, backward=True) == pytest.approx(4 * forward + 3 * launch)


@pytest.mark.parametrize(("budget", "pieces"), [(4700, 1), (4000, 2), (2300, 4), (1000, 8)])
def test_a_budget_cuts_and_each_piece_has_its_context(budget: int, pieces: int) -> None:
    """1500 + 8 x 400 tokens: pieces of 6 + 2, of 2 + 2 + 2 + 2, and of one sequence where even that is too long."""
    found = clock("qwen3-4b", f"trainer.tokens_per_batch={budget}")
    assert found.pieces(found.config.algo.update_trees(TOOLHOP), 1) == pieces


def test_a_context_costs_as_often_as_it_is_computed() -> None:
    """GRPO of a wide network: a budget of 4,000 tokens cuts the group, and both pieces compute the prompt."""
    trees = composed("algo=grpo").algo.update_trees(TOOLHOP)
    whole, cut = (
        clock("qwen3-32b", f"trainer.tokens_per_batch={budget}").passes(trees, 1, backward=False)
        for budget in (4700, 4000)
    )
    prompt = clock("qwen3-32b").passes([Tree(1500, 1, 0, 0)], 1, backward=False)
    assert cut - whole == pytest.approx(prompt)


def test_a_measured_rate_replaces_the_estimate() -> None:
    batch = clock("qwen3-4b", "trainer.prompts_per_batch=8", "trainer.minibatch_prompts=8", mfu=0.25).batch(TOOLHOP)
    operations = clock("qwen3-4b").operations(composed("algo=grpo").algo.update_trees(TOOLHOP), 8, backward=True)
    assert batch.update == pytest.approx(operations / (0.25 * 989e12)) and batch.mfu == pytest.approx(0.25)
    assert batch.scoring == pytest.approx(HOST * 64)  # one update a batch is on policy, so no old log-probs are needed


def test_gradients_and_shared_weights_are_exchanged() -> None:
    four = ("hardware=multi_gpu", "trainer.prompts_per_batch=8", "trainer.minibatch_prompts=8")
    gradients = 4 * QWEN.parameters * 3 / 4
    assert clock("qwen3-4b", *four).exchange(3) == pytest.approx(2 * gradients / 450e9)
    weights = 4 * QWEN.parameters * 3 / 4
    shared = clock("qwen3-4b", *four, "hardware.accelerate_config=fsdp2").exchange(3)
    assert shared == pytest.approx(3 * (weights + gradients) / 450e9)
    config = composed("model=qwen3-4b", *COMMON, *four)
    config.hardware.nodes = 2
    assert Clock(config, QWEN, H100).exchange(1) == pytest.approx(2 * gradients / NETWORK)
    assert clock("qwen3-4b").exchange(3) == 0


def test_decoding_reads_the_weights_and_the_cache() -> None:
    """Eight rollouts of one prompt: 600 steps, for no rollout is longer than the budget."""
    lengths = Lengths(1000, 600, 600, 0, 8)
    keys = ("rollout.max_completion_tokens=600", "rollout.max_turn_tokens=600")
    local = clock("qwen3-32b", *keys)
    seen = 1000 / 8 + 300
    reading = (2 * LARGE.parameters + 8 * 262_144 * seen) / (READ * 3350e9)
    computing = 2 * LARGE.parameters * 8 / (PRODUCTS * 989e12)
    pairs = 8 * (1000 / 8) ** 2 / 2
    prefill = (2 * LARGE.body * 1000 + 4 * 64 * 64 * 128 * pairs) / (PRODUCTS * 989e12)
    wanted = 600 * max(reading + computing, 64 * LAUNCH_ONE) + prefill
    assert local.sampling(8, lengths) == pytest.approx(wanted, rel=1e-3)
    served = clock("qwen3-32b", *keys, "vllm.mode=server", "vllm.tensor_parallel=4")
    whole = (2 * LARGE.parameters + 8 * 262_144 * 1300) / 4 / (READ * 3350e9) + computing / 4
    assert served.sampling(8, lengths) == pytest.approx(600 * max(whole, VLLM_STEP) + prefill / 4, rel=1e-3)


def test_frozen_weights_are_copied_for_each_token() -> None:
    """Of a wide network, whose few layers are launched in no time."""
    lengths, keys = Lengths(8, 100, 100, 0, 8), ("rollout.max_completion_tokens=100", "rollout.max_turn_tokens=100")
    wide = replace(LARGE, layers=2, size=30e9)
    whole, adapters = (
        Clock(composed("model=qwen3-32b", *COMMON, *keys, f"model/lora={lora}"), wide, H100).sampling(8, lengths)
        for lora in ("off", "on")
    )
    once = 100 * 2 * 30e9 / (READ * 3350e9)
    assert whole == pytest.approx(once, rel=0.05)  # and operations
    assert adapters - whole == pytest.approx(3 * once)  # 4 bytes are read, 2 written and 2 read


def test_episodes_wait_where_the_cache_is_full() -> None:
    """Of a thousand episodes, the budget holds 64 of 1,024 tokens on average."""
    lengths = Lengths(8, 2046, 2046, 0, 8)
    keys = ("rollout.max_completion_tokens=2046", "rollout.max_turn_tokens=2046", "rollout.cache_tokens=65536")
    seconds = clock("qwen3-0.6b", *keys).sampling(1024, lengths)
    assert seconds == pytest.approx(1024 / 64 * 2046 * 28 * LAUNCH_ONE, rel=0.02)
    room = clock("qwen3-4b", "vllm.mode=colocate", "vllm.memory=0.5")._room()
    assert room == pytest.approx((0.5 * 79.2 * GIB - 2 * QWEN.parameters - 3 * GIB) / 147_456)


def test_shared_weights_are_gathered_for_each_token() -> None:
    lengths, keys = Lengths(100, 100, 100, 0, 8), ("rollout.max_completion_tokens=100", "rollout.max_turn_tokens=100")
    whole = clock("qwen3-4b", "hardware=multi_gpu", *keys).sampling(8, lengths)
    shared = clock("qwen3-4b", "hardware=multi_gpu", *keys, "hardware.accelerate_config=fsdp2").sampling(8, lengths)
    assert shared - whole == pytest.approx(100 * 2 * QWEN.parameters * 3 / 4 / 450e9)
