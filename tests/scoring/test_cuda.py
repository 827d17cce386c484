"""The packed engine on a GPU: FlexAttention gives the numbers and gradients of padded rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.sequence import Scores, Sequence
from tests.scoring.test_engines import assert_equal, drawn, gradients, packed
from tests.support.networks import VOCABULARY, network

pytestmark = pytest.mark.cuda
HEAD = {"head_dim": 16, "hidden_size": 64}


@pytest.fixture(autouse=True)
def on_the_gpu() -> Any:
    with torch.device("cuda"):
        yield


def after(prompt: list[int], completion: list[int]) -> Sequence:
    return Sequence(prompt + completion, range(len(prompt), len(prompt) + len(completion)))


def long(seed: int) -> list[Sequence]:
    """Rows of several blocks of FlexAttention: a prompt of 300 tokens or so, and six completions."""
    draw = torch.Generator("cuda").manual_seed(seed)

    def ids(size: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (size,), generator=draw).tolist()

    prompt = ids(290 + 17 * seed)
    return [after(prompt, ids(40 + 50 * row)) for row in range(6)]


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2", "phi3"])
def test_numbers_and_gradients_are_those_of_the_padded_engine(family: str) -> None:
    model = network(family, **HEAD, max_position_embeddings=2048)
    with torch.device("cpu"):
        short = drawn()
    shortest = [after([5, 6, 7], [8, 9]), after([5, 6, 7], [9])]  # less than a block of FlexAttention
    for sequences in (shortest, short, long(0), long(1), shortest):
        plain = gradients(PaddedEngine(), model, sequences)
        assert_equal(gradients(packed(model), model, sequences), plain)


def test_with_adapters_and_gradient_checkpointing() -> None:
    found = {}
    for engine in ("padded", "packed"):
        model: Any = get_peft_model(
            network(**HEAD, max_position_embeddings=2048), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
        )
        with torch.no_grad():
            for number, (name, parameter) in enumerate(model.named_parameters()):
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator("cuda").manual_seed(number))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found[engine] = gradients(packed(model) if engine == "packed" else PaddedEngine(), model.train(), long(0))
    assert_equal(found["packed"], found["padded"])


def test_bfloat16_is_as_near_to_float32_as_padded_rows_are() -> None:
    model = network(**HEAD, max_position_embeddings=2048)

    def logps(engine: Any, bf16: bool) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            scores: Scores = engine.score(model, long(0))
        return torch.cat(scores.logps).detach().float()

    exact, padded = logps(PaddedEngine(), False), logps(PaddedEngine(), True)
    ours = logps(packed(model), True)
    assert float((ours - exact).norm()) < 1.3 * float((padded - exact).norm())


def test_lengths_do_not_compile_again_and_again() -> None:
    model = network(**HEAD, max_position_embeddings=4096)
    engine = packed(model)
    for seed in range(3):
        engine.score(model, long(seed))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed in range(3, 12):
        engine.score(model, long(seed))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_heads_too_small_for_the_kernel_are_padded_with_the_reason() -> None:
    assert "16" in (why_not_packed(network(head_dim=8)) or "")
    assert why_not_packed(network(**HEAD)) is None
    assert isinstance(packed(network(**HEAD)), PackedEngine)


def test_compiled_layers_give_the_numbers_and_gradients_of_padded_rows() -> None:
    """One graph serves every length; without a tree the layers stay as they were."""
    for adapters in (False, True):
        model: Any = network(**HEAD, max_position_embeddings=2048)
        if adapters:
            model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
            model.gradient_checkpointing_enable({"use_reentrant": False})
        plain = [gradients(PaddedEngine(), model, long(seed)) for seed in (0, 1)]
        engine = PackedEngine(compiled=True)
        engine.prepare(model)
        for seed in (0, 1, 0):
            assert_equal(gradients(engine, model, long(seed)), plain[seed])
        assert_equal(gradients(PaddedEngine(), model, long(0)), plain[0])
