"""The server that a run with vllm.mode=server wants: its command, and what its settings must be."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from agentrl.config.schema import Config
from agentrl.config.shipped import PACKAGE
from agentrl.core.gguf import converted_folder, is_gguf

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


def samples_with_vllm(config: Config) -> bool:
    """Whether vLLM plays this run's rollouts; methods without rollouts of their own sample with transformers."""
    return config.vllm.mode != "off" and bool(config.algo.rollouts)


def served_path(config: Config) -> str:
    """Hub id or directory of the model, as another program finds it."""
    path = config.model.path
    if is_gguf(path):
        return str(converted_folder(Path(path)))
    return str(PACKAGE / "tiny" / path.removeprefix("builtin:")) if path.startswith("builtin:") else path


def network_of(path: str) -> dict[str, Any]:
    """The config.json of a checkpoint on this disk; empty where there is none, or none that can be read."""
    try:
        content = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def positions_of(path: str) -> int | None:
    """The longest context of a checkpoint on this disk, in tokens; None where its config.json does not say it."""
    content = network_of(path)
    found: int | None = (content.get("text_config") or content).get("max_position_embeddings")
    return found


def longest_context(config: Config) -> int:
    """Tokens of the longest context that vLLM must take: `vllm.context`, else that of the longest episode."""
    longest = config.rollout.max_prompt_tokens + config.algo.longest_hint() + config.rollout.max_completion_tokens
    return config.vllm.context or min(longest, positions_of(served_path(config)) or longest)


def served_dtype(config: Config) -> str:
    """The type in which vLLM computes, so that its log-probs are those of the trainer."""
    return "bfloat16" if config.hardware.bf16 else config.model.dtype


def lora_rank(config: Config) -> int:
    """The smallest rank of vLLM's that holds the run's adapters."""
    return next((rank for rank in RANKS if rank >= config.model.lora.r), RANKS[-1])


def serve_command(config: Config) -> str:
    """The shell command that starts the server which the configuration wants."""
    vllm, cuda = config.vllm, config.hardware.device == "cuda"
    words = ["vllm", "serve", served_path(config)]
    if config.model.revision is not None:
        words += ["--revision", config.model.revision]
    words += ["--dtype", served_dtype(config), "--max-model-len", str(longest_context(config))]
    words += ["--logprobs-mode", "processed_logprobs"]
    if vllm.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(vllm.tensor_parallel)]
    if vllm.memory is not None:
        words += ["--gpu-memory-utilization", f"{vllm.memory:g}"]
    if vllm.kv_cache != "auto":
        words += ["--kv-cache-dtype", vllm.kv_cache]
    if vllm.sleep:
        words.append("--enable-sleep-mode")
    environment = ["VLLM_SERVER_DEV_MODE=1"]
    if config.model.lora.enabled:
        environment.append("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
        words += ["--enable-lora", "--max-lora-rank", str(lora_rank(config))]
    elif cuda and not vllm.sleep:  # NCCL refuses a server on the GPU of the trainer, so weights go through a file
        words += ["--weight-transfer-config", '{"backend": "nccl"}']
    return " ".join([*environment, shlex.join(words)])
