"""How many tokens a sampler in the training process keeps the keys and values of, and how large they are."""

from __future__ import annotations

import math
from typing import Any

from agentrl.config.algos import Evaluate
from agentrl.config.schema import Config, Rollout
from agentrl.config.vllm import network_of, samples_with_vllm, served_dtype, served_path

LEAST_CACHE = 65536  # tokens; short episodes fill a batch, and long ones find room on one device
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Layers, key-value heads and their width by hub id. Those of Qwen2.5, Qwen3, Llama, Phi and SmolLM2-135M are the
# checkpoints' own; those of the other models were published elsewhere and not compared with their config.json.
KNOWN_HEADS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (24, 2, 64),
    "Qwen/Qwen2.5-1.5B-Instruct": (28, 2, 128),
    "Qwen/Qwen2.5-3B-Instruct": (36, 2, 128),
    "Qwen/Qwen2.5-7B-Instruct": (28, 4, 128),
    "Qwen/Qwen3-0.6B": (28, 8, 128),
    "Qwen/Qwen3-1.7B": (28, 8, 128),
    "Qwen/Qwen3-4B": (36, 8, 128),
    "Qwen/Qwen3-8B": (36, 8, 128),
    "Qwen/Qwen3.5-0.8B": (6, 2, 256),  # of its layers, every fourth has keys and values
    "Qwen/Qwen3.5-2B": (6, 2, 256),
    "Qwen/Qwen3.5-4B": (8, 4, 256),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (30, 3, 64),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (32, 5, 64),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (24, 32, 64),
    "google/gemma-3-270m-it": (18, 1, 256),
    "LiquidAI/LFM2-350M": (6, 8, 64),  # the others of its 16 layers are convolutions
    "microsoft/Phi-3-mini-128k-instruct": (32, 32, 96),
    "microsoft/Phi-4-mini-instruct": (32, 8, 128),
    "meta-llama/Llama-3.2-1B-Instruct": (16, 8, 64),
    "meta-llama/Llama-3.2-3B-Instruct": (28, 8, 128),
}


def cache_budget(rollout: Rollout, positions: float = math.inf) -> int:
    """Tokens of the cache; `positions` is the length of the model's context."""
    return rollout.cache_tokens or max(LEAST_CACHE, 4 * longest_episode(rollout, positions))


def longest_episode(rollout: Rollout, positions: float = math.inf) -> int:
    """Tokens of the longest context that an episode can have."""
    return int(min(positions, rollout.max_prompt_tokens + rollout.max_completion_tokens))


def most_cached(config: Config) -> int:
    """Tokens in the cache of one process at most; 0 where another program samples, or nobody."""
    algo, trainer, k = config.algo, config.trainer, config.rollout.num_generations
    if samples_with_vllm(config) or (isinstance(algo, Evaluate) and algo.endpoint.base_url is not None):
        return 0
    together = config.eval.batch if config.eval.before or config.eval.after else 0  # episodes
    if algo.rollouts or algo.sampled_before(1, 1):
        together = max(together, trainer.prompts_per_batch * k // config.hardware.processes)
    positions = network_of(served_path(config)).get("max_position_embeddings") or math.inf
    return min(cache_budget(config.rollout, positions), together * longest_episode(config.rollout, positions))


def cached_bytes(config: Config) -> int | None:
    """Bytes of the keys and values of one token; None where the network is not known here."""
    heads = KNOWN_HEADS.get(config.model.path) or _heads(network_of(served_path(config)))
    return None if heads is None else 2 * math.prod(heads) * BYTES[served_dtype(config)]


def _heads(network: dict[str, Any]) -> tuple[int, int, int] | None:
    network = network.get("text_config", network)
    try:
        queries = network["num_attention_heads"]
        width = network.get("head_dim") or network["hidden_size"] // queries
        return int(network["num_hidden_layers"]), int(network.get("num_key_value_heads") or queries), int(width)
    except (KeyError, TypeError, ValueError):  # a network of another kind, or a damaged file, which loading reports
        return None
