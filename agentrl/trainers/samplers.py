"""Between TRL's trainer of groups and the rollout: a sampler of its policy, and nothing of TRL's own reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerFast

from agentrl.rollout.sampler import Sampler
from agentrl.rollout.transformers_sampler import TransformersSampler
from agentrl.rollout.vllm_sampler import VllmSampler


def policy_sampler(trainer: Any) -> Sampler:
    """A sampler of the policy of a `GRPOTrainer`, as it is when a turn begins."""
    if not trainer.use_vllm:
        return TransformersSampler(
            lambda: trainer.model_wrapped,
            trainer.accelerator,
            trainer.processing_class,
            trainer.config,
            trainer.args.gradient_checkpointing_kwargs,
        )

    def refresh() -> None:
        """Bring vLLM the weights of the last update; TRL does so when training alone."""
        if trainer.state.global_step != trainer._last_loaded_step:
            trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step

    context = int(trainer.model.config.max_position_embeddings)
    return VllmSampler(trainer.vllm_generation, refresh, trainer.eos_token_ids, context, trainer.num_generations)


@contextmanager
def unparsed(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """TRL parses nothing meanwhile: the messages of a rollout are read already."""
    template, tokenizer.response_template = tokenizer.response_template, None
    try:
        yield
    finally:
        tokenizer.response_template = template
