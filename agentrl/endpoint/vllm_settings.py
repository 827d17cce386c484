"""What the settings of a running vLLM server say: how it takes new weights, and whether it is the one a run wants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from agentrl.config.schema import Config
from agentrl.config.vllm import longest_context, network_of, serve_command, served_dtype, served_path
from agentrl.core.errors import UserError

Way = Literal["adapter", "nccl", "file"]
SIZES = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def way_of_weights(settings: dict[str, Any], config: Config) -> Way:
    """How new weights reach the server: as an adapter, tensor by tensor over NCCL, or through a file."""
    if config.model.lora.enabled and settings.get("lora_config"):
        return "adapter"
    transfer = settings.get("weight_transfer_config") or {}
    apart = config.hardware.device == "cuda" and not config.vllm.sleep  # with sleep, both are on one GPU
    keyed = bool(os.environ.get("VLLM_API_KEY"))  # TRL's client of NCCL sends no key
    return "nccl" if apart and transfer.get("backend") == "nccl" and not keyed else "file"


def serves_untied(settings: dict[str, Any]) -> bool:
    """Whether the server has an output layer of its own, as far as its checkpoint on this disk tells."""
    return network_of(_model_of(settings)).get("tie_word_embeddings") is False


def check_settings(settings: dict[str, Any], context: int, config: Config) -> None:
    """Raise UserError for a server that this run cannot train with; `context` is the longest that it takes."""
    for trouble in (*_lacks(settings, config), *_differs(settings, context, config)):
        command = f"start it with: {serve_command(config)}"
        raise UserError(f"vllm.url={config.vllm.url}: that server {trouble}; {command}")


def _lacks(settings: dict[str, Any], config: Config) -> Iterator[str]:
    """What the server cannot do at all."""
    mode = settings.get("model_config", {}).get("logprobs_mode")
    if mode != "processed_logprobs":
        yield f"gives log-probs as {mode}, before temperature and top_p, which bias every ratio"
    if not settings.get("cache_config", {}).get("enable_prefix_caching", True):
        yield "keeps no prefix cache, so every turn would pay for the whole context again"
    if config.vllm.sleep and not settings.get("model_config", {}).get("enable_sleep_mode"):
        yield "cannot sleep, and vllm.sleep=true"
    lora = settings.get("lora_config") or {}
    if config.model.lora.enabled and lora and lora.get("max_lora_rank", 0) < config.model.lora.r:
        yield f"takes adapters of rank {lora.get('max_lora_rank')} at most, and model.lora.r={config.model.lora.r}"
    device = (settings.get("device_config") or {}).get("device")
    tied = network_of(served_path(config)).get("tie_word_embeddings") and not serves_untied(settings)
    if device == "cpu" and tied and way_of_weights(settings, config) == "file":
        # Its packed copy of the tied output layer is not made anew when weights are reloaded (seen with 0.32.0).
        yield (
            "runs on a CPU, where vLLM keeps the old output layer of a model that ties it to the embeddings; serve an "
            "untied copy of the checkpoint (docs/vllm.md has the lines)"
        )


def _differs(settings: dict[str, Any], context: int, config: Config) -> Iterator[str]:
    """What the server was started with, and the configuration asks for otherwise."""
    model, cache = settings.get("model_config", {}), settings.get("cache_config", {})
    here, there = network_of(served_path(config)), network_of(_model_of(settings))
    sizes = [name for name in SIZES if here and there and here.get(name) != there.get(name)]
    if sizes:
        yield f"serves another model ({_model_of(settings)}, {sizes[0]} {there.get(sizes[0])})"
    elif _is_hub_id(config.model.path) and _is_hub_id(_model_of(settings)) and _model_of(settings) != config.model.path:
        yield f"serves another model ({_model_of(settings)})"
    if context < longest_context(config):
        yield f"takes contexts of {context} tokens, and this run needs {longest_context(config)} (vllm.context)"
    dtype = str(model.get("dtype", "")).removeprefix("torch.")
    if dtype != served_dtype(config):
        yield f"computes in {dtype}, the trainer in {served_dtype(config)}"
    parallel = settings.get("parallel_config", {}).get("tensor_parallel_size", 1)
    if parallel != config.vllm.tensor_parallel:
        yield f"is split over {parallel} GPUs, and vllm.tensor_parallel={config.vllm.tensor_parallel}"
    if not str(cache.get("cache_dtype", "auto")).startswith(config.vllm.kv_cache):
        yield f"keeps its cache as {cache.get('cache_dtype')}, and vllm.kv_cache={config.vllm.kv_cache}"
    share, wanted = cache.get("gpu_memory_utilization"), config.vllm.memory
    if wanted is not None and config.hardware.device == "cuda" and share != wanted:
        yield f"fills {share:g} of the GPU's memory, and vllm.memory={wanted:g}"


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not network_of(path)


def _model_of(settings: dict[str, Any]) -> str:
    return str(Path(str(settings.get("model_config", {}).get("model", ""))))
