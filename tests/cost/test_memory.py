"""The memory of a process, by hand for Qwen3-4B, and activations as autograd saves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, Qwen3Config

from agentrl.config.networks import KNOWN, Network
from agentrl.cost.memory import GIB, RESERVE, Parts, Shares, estimate_memory, layer_bytes, pass_tokens
from tests.support.helpers import composed

QWEN = KNOWN["Qwen/Qwen3-4B"]
ALL, BODY = 4_022_272_000, 3_633_315_840  # weights, and those of its layers
TABLE = 151936 * 2560
COMMON = ("algo=grpo", "model=qwen3-4b", "hardware=gpu", "eval.before=false", "bench.train_tasks=256")


def parts(phase: str, *keys: str) -> Parts:
    return estimate_memory(composed(*COMMON, *keys), QWEN, 80 * GIB).phases[phase]


def test_a_full_update_by_hand() -> None:
    found = parts("update", "algo.kl_coef=0")
    assert {name: found[name] for name in ("weights", "gradients", "optimizer")} == {
        "weights": 4 * ALL,
        "gradients": 4 * ALL,
        "optimizer": 8 * ALL,
    }
    assert sum(found[name] for name in ("weights", "gradients", "optimizer")) / GIB == pytest.approx(59.9, abs=0.1)
    assert found["bfloat16 copies"] == 2 * BODY and found["CUDA"] == RESERVE
    # passes of 30,000 tokens: inputs of 36 layers in float32, and one layer in full with its gradients
    layer = 26 * 2560 + 10 * (32 * 128 + 8 * 128) + 8 * 9728
    assert found["activations"] == 30_000 * (36 * 2560 * 4 + 2 * layer)
    assert found["logits"] == 4096 * 32768 * 2 + 4 * TABLE + 30_000 * 2560 * 8
    assert "reference" not in found and "vLLM" not in found
    assert parts("update", "algo.kl_coef=0.1")["reference"] == 4 * ALL
    every = parts("update", "model.gradient_checkpointing=false")["activations"]
    assert every == 30_000 * 37 * layer


def test_sampling_has_no_gradients_and_an_update_no_cache() -> None:
    found = parts("sampling", "algo.kl_coef=0", "rollout.cache_tokens=70000")
    wanted = {"weights": 4 * ALL, "optimizer": 8 * ALL, "bfloat16 copies": 2 * BODY}
    assert found == wanted | {"KV cache": 70_000 * 147_456, "CUDA": RESERVE}
    assert "KV cache" not in parts("update")


def test_vllm_beside_the_trainer_takes_its_share_and_sleeps() -> None:
    beside = ("vllm.mode=colocate", "algo.kl_coef=0")
    assert parts("sampling", *beside)["vLLM"] == parts("update", *beside)["vLLM"] == pytest.approx(0.3 * 80 * GIB)
    asleep = (*beside, "vllm.sleep=true", "vllm.memory=0.4")
    assert parts("sampling", *asleep)["vLLM"] == pytest.approx(0.4 * 80 * GIB) and "vLLM" not in parts(
        "update", *asleep
    )
    unknown = estimate_memory(composed(*COMMON, *beside), QWEN).phases["sampling"]["vLLM"]
    assert unknown == 2 * ALL + 3 * GIB + 30_000 * 147_456  # its weights, what is beside them, one longest episode
    assert "vLLM" not in parts("sampling", "vllm.mode=server")


def test_adapters_are_trained_alone() -> None:
    found = parts("update", "model/lora=on", "algo.kl_coef=0.1")
    adapter = QWEN.adapter(16)
    assert (found["gradients"], found["optimizer"]) == (4 * adapter, 8 * adapter) and "reference" not in found
    assert found["bfloat16 copies"] == 2 * BODY / 36  # autocast copies frozen weights anew in each layer
    assert parts("update", "model/lora=on", "model.gradient_checkpointing=false")["bfloat16 copies"] == 2 * BODY
    four_bits = parts("update", "model/lora=on", "model.quantize=4bit")
    assert four_bits["weights"] == 0.5 * BODY + 4 * TABLE and "bfloat16 copies" not in four_bits


def test_sharding_divides() -> None:
    four = ("hardware=multi_gpu", "algo.kl_coef=0.1")  # with four processes

    def three(*keys: str) -> tuple[float, ...]:
        found = parts("update", *four, *keys)
        return tuple(found[name] / ALL for name in ("weights", "gradients", "optimizer", "reference"))

    assert three() == (4, 8, 8, 4)  # DDP sends copies of the gradients
    assert three("hardware.accelerate_config=fsdp2") == (1, 1, 2, 1)
    # DeepSpeed: weights and gradients of 16 bits; in float32 the weights are a part of the optimizer
    assert three("hardware.accelerate_config=zero2") == (2, 0.5, 3, 2)
    assert three("hardware.accelerate_config=zero3") == (0.5, 0.5, 3, 0.5)
    whole = three("hardware.accelerate_config=zero3", "hardware.bf16=false")
    assert whole == (1, 1, 2, 1)
    gathered = parts("update", *four, "hardware.accelerate_config=fsdp2")
    assert gathered["gathered weights"] == 4 * BODY / 36 + 4 * TABLE and "bfloat16 copies" not in gathered


def test_before_training_nothing_is_sharded() -> None:
    config = composed(*COMMON, "hardware=multi_gpu", "hardware.accelerate_config=fsdp2")
    assert "evaluation before training" not in estimate_memory(config, QWEN).phases
    config.eval.before = True
    assert estimate_memory(config, QWEN).phases["evaluation before training"]["weights"] == 4 * ALL


def test_a_file_of_accelerate_says_how_much_is_shared(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}\n")
    config = composed(*COMMON, "hardware=multi_gpu", f"hardware.accelerate_config={file}")
    assert Shares.of(config) == Shares(1, 1, 4, deepspeed=True)


def test_the_largest_phase_counts() -> None:
    memory = estimate_memory(composed(*COMMON), QWEN)
    assert memory.peak == "update" and memory.most == sum(memory.phases["update"].values())
    assert estimate_memory(composed("algo=eval", "model=qwen3-4b"), QWEN).peak == "sampling"


def test_a_pass_holds_an_update_or_the_budget_or_one_episode() -> None:
    lengths = ("rollout.max_prompt_tokens=100", "rollout.max_completion_tokens=200", "rollout.max_turn_tokens=200")
    two = (*COMMON, *lengths, "trainer.minibatch_prompts=2", "trainer.prompts_per_batch=2")
    assert pass_tokens(composed(*two)) == 2 * 8 * 300
    assert pass_tokens(composed(*two, "trainer.tokens_per_batch=1000")) == 1000
    assert pass_tokens(composed(*two, "trainer.tokens_per_batch=50")) == 300


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("shape", [(256, 4, 2, 64, 1024), (384, 6, 3, 64, 640)])
def test_autograd_saves_as_many_bytes_of_a_layer(shape: tuple[int, ...], bf16: bool) -> None:
    """Counted as the difference between networks of three layers and of one, without weights and their copies."""
    hidden, heads, shared, width, mlp = shape
    length, saved = 48, []
    for layers in (1, 3):
        network = Qwen3Config(
            vocab_size=128,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            head_dim=width,
        )
        model = AutoModelForCausalLM.from_config(network, dtype=torch.float32)
        weights = {tuple(one.shape) for one in model.parameters()}
        sizes: dict[int, int] = {}
        kept: list[torch.Tensor] = []

        def keep(
            one: torch.Tensor,
            kept: list[torch.Tensor] = kept,
            sizes: dict[int, int] = sizes,
            weights: set[tuple[int, ...]] = weights,
        ) -> torch.Tensor:
            kept.append(one)
            if tuple(one.shape) not in weights and tuple(one.shape)[::-1] not in weights:
                sizes[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
            return one

        ids = torch.arange(length)[None]
        with saved_tensors_hooks(keep, lambda one: one), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.base_model(input_ids=ids, use_cache=False)
        saved.append(sum(sizes.values()))
    counted = (saved[1] - saved[0]) / 2 / length
    config = composed("hardware=gpu", f"hardware.bf16={str(bf16).lower()}")
    assert layer_bytes(config, Network(1, hidden, mlp, heads, shared, width, 128, True)) == pytest.approx(
        counted, rel=0.02
    )
