"""Makes the sampler of a GRPO trainer: transformers, vLLM in this process, or a vLLM server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from trl.generation import vllm_generation

from agentrl.core.engine import Decoding
from agentrl.core.stop import together
from agentrl.endpoint.vllm import VllmServer, VllmTrouble, server_failure
from agentrl.endpoint.vllm_settings import serves_untied, way_of_weights
from agentrl.rollout.sampler import Sampler
from agentrl.rollout.transformers_sampler import TransformersSampler
from agentrl.rollout.vllm_colocated import ColocatedSampler
from agentrl.rollout.vllm_nccl import NcclWeights
from agentrl.rollout.vllm_server import ServerSampler
from agentrl.rollout.vllm_weights import AdapterWeights, FileWeights, Weights, keep_base
from agentrl.trainers.parity import PROBE, check_parity, parity_requests


def policy_sampler(trainer: Any) -> Sampler:
    """Make the sampler of a GRPO trainer. It uses the policy's weights at the start of each batch of episodes.

    Raises UserError if a vLLM server does not answer.
    """
    if trainer.config.vllm.mode == "colocate":
        return _colocated_sampler(trainer)
    if trainer.config.vllm.mode == "server":
        return _server_sampler(trainer)
    return TransformersSampler(
        lambda: trainer.model_wrapped,
        trainer.accelerator,
        trainer.processing_class,
        trainer.config,
        trainer.args.gradient_checkpointing_kwargs,
    )


def _colocated_sampler(trainer: Any) -> ColocatedSampler:
    keep_base(trainer.vllm_generation)
    checked: int | None = None

    def refresh() -> None:
        """Sync the weights of the last update to vLLM, if TRL has not done so before a training batch. Check them."""
        nonlocal checked
        step = trainer.state.global_step
        if step != trainer._last_loaded_step:
            trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = step
        if step != checked:
            check_parity(trainer, sampler.sample_now(parity_requests(trainer), PROBE))
            checked = step

    vllm = trainer.config.vllm
    joint = trainer.config.hardware.processes > 1 and (vllm.tensor_parallel > 1 or vllm.sleep)
    sampler = ColocatedSampler(trainer.vllm_generation, refresh, trainer.eos_token_ids, joint)
    return sampler


def _server_sampler(trainer: Any) -> ServerSampler:
    """Make the sampler of a vLLM server. Raises UserError if the server does not answer."""
    config, accelerator = trainer.config, trainer.accelerator
    try:
        server = VllmServer(config.vllm.url)
        settings, (name, context) = server.settings(), server.model()
        if config.vllm.sleep:
            server.wake_up()  # a run that was killed may have left it asleep
    except VllmTrouble as trouble:
        raise server_failure("vllm.url", config.vllm.url, trouble) from trouble
    weights = _weights(trainer, server, settings, name)
    loaded: dict[str, Any] = {"step": None, "name": name, "awake": True}

    def refresh() -> str:
        _set_awake(trainer, server, loaded, awake=True)
        if trainer.state.global_step != loaded["step"]:
            loaded["name"] = weights.sync_weights()
            loaded["step"] = trainer.state.global_step
            probe = f"{config.seed} parity {loaded['step']} {accelerator.process_index}"
            sample = partial(sampler.sample_now, loaded["name"], parity_requests(trainer), PROBE, probe)
            check_parity(trainer, together(sample))
        return str(loaded["name"])

    def origin(decoding: Decoding | None) -> str:
        """Return the origin of seeds: the step for a training batch, torch's seed (set per batch) for an evaluation."""
        where = f"step {trainer.rollout_step}" if decoding is None else f"evaluation {torch.initial_seed()}"
        return f"{config.seed} {where} {accelerator.process_index}"

    longest = int(trainer.model.config.get_text_config().max_position_embeddings)
    sampler = ServerSampler(
        server,
        config.rollout,
        refresh,
        origin,
        lambda: _set_awake(trainer, server, loaded, awake=False),
        trainer.eos_token_ids,
        min(context, config.vllm.context or context, longest),
    )
    return sampler


def _weights(trainer: Any, server: VllmServer, settings: dict[str, Any], name: str) -> Weights:
    accelerator, tokenizer = trainer.accelerator, trainer.processing_class
    folder = Path(trainer.args.output_dir) / "vllm"
    way = way_of_weights(settings, trainer.config)
    if way == "adapter":
        wrapped: Callable[[], Any] = lambda: trainer.model_wrapped  # noqa: E731
        return AdapterWeights(server, wrapped, accelerator, folder)
    if way == "nccl":
        return NcclWeights(server, name, settings, trainer.model, accelerator, tokenizer)
    untie = serves_untied(settings) and bool(trainer.model.config.tie_word_embeddings)
    return FileWeights(server, name, trainer.model, accelerator, tokenizer, folder, untie)


def _set_awake(trainer: Any, server: VllmServer, state: dict[str, Any], awake: bool) -> None:
    """With vllm.sleep, wake the server up, or put it to sleep once every process is done with it."""
    if not trainer.config.vllm.sleep or state["awake"] == awake:
        return

    def tell() -> None:
        try:
            server.wake_up() if awake else server.sleep()
        except VllmTrouble as trouble:
            raise server_failure("vllm.url", server.url, trouble) from trouble

    trainer.accelerator.wait_for_everyone()
    together(tell if trainer.accelerator.is_main_process else lambda: None)
    state["awake"] = awake


@contextmanager
def vllm_cache(kind: str) -> Iterator[None]:
    """Let vLLM engines that TRL makes in this block store their key-value cache as `kind`. TRL has no such argument."""
    engine = getattr(vllm_generation, "LLM", None)  # imported only where vllm is installed
    if engine is None or kind == "auto":
        yield
        return
    vllm_generation.LLM = partial(engine, kv_cache_dtype=kind)
    try:
        yield
    finally:
        vllm_generation.LLM = engine


@contextmanager
def skip_parsing(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Keep TRL from parsing completions in this block. The rollout loop has already parsed them into messages."""
    template, tokenizer.response_template = tokenizer.response_template, None
    try:
        yield
    finally:
        tokenizer.response_template = template
