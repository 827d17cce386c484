"""A sampler over a model in this process: transformers' `generate`, one padded batch a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from agentrl.config.schema import Config
from agentrl.core.engine import Decoding
from agentrl.core.stop import anywhere
from agentrl.rollout.sampler import Request, Turn, cut_turn


class TransformersSampler:
    """Samples from the model that `model()` returns, as accelerate has wrapped it by then; gives no log-probs.

    Where several processes each hold a part of the weights, every token needs all of them: a process whose episodes
    have ended takes part in the turns of the others.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerFast,
        config: Config,
        checkpointing: dict[str, Any] | None = None,  # arguments of gradient checkpointing, which generation interrupts
    ) -> None:
        self._model, self._accelerator, self._checkpointing = model, accelerator, checkpointing
        self._rollout, self._bf16 = config.rollout, config.hardware.bf16
        self._backend = DistributedBackend(accelerator)
        self._tokenizer = tokenizer
        unwrapped = accelerator.unwrap_model(model())
        self.ends: Sequence[int] = end_tokens(unwrapped, tokenizer)
        self.context = int(unwrapped.config.max_position_embeddings)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self._accelerator.num_processes > 1 and (self._backend.is_fsdp or self._backend.is_zero3)

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[_Session]:
        """See `Sampler.session`. With a `decoding` the model is in evaluation mode meanwhile."""
        session = _Session(self, self.generation(decoding))
        with self._evaluating(decoding):
            yield session
            while self.sharded and anywhere(False):
                self.lend_weights()

    @contextmanager
    def _evaluating(self, decoding: Decoding | None) -> Iterator[None]:
        if decoding is None:
            yield
            return
        model = self._model()
        training = model.training
        model.eval()
        try:
            # Before training the model is not wrapped for autocast yet: base and trained model must compute alike.
            with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=self._bf16):
                yield
        finally:
            model.train(training)

    def generation(self, decoding: Decoding | None) -> GenerationConfig:
        """What `generate` is told; every turn may take `rollout.max_turn_tokens`."""
        chosen = decoding or Decoding(self._rollout.temperature, self._rollout.top_p)
        how: dict[str, Any] = {"do_sample": False}
        if chosen.temperature > 0:
            how = {"do_sample": True, "temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=self._rollout.max_turn_tokens or self._rollout.max_completion_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=list(self.ends),
            repetition_penalty=1.0,
            disable_compile=True,
            **how,
        )

    def generate(self, prompts: list[list[int]], generation: GenerationConfig) -> list[list[int]]:
        """One turn after each prompt: its ids up to the first end token."""
        tensors = [torch.tensor(ids) for ids in prompts]
        inputs = {
            "input_ids": pad(tensors, padding_value=self._tokenizer.pad_token_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(ids) for ids in tensors], padding_value=0, padding_side="left"),
        }
        inputs = {name: value.to(self._accelerator.device) for name, value in inputs.items()}
        wrapped = self._model()
        with (
            unwrap_model_for_generation(
                wrapped, self._accelerator, gradient_checkpointing_kwargs=self._checkpointing
            ) as model,
            torch.no_grad(),
            self._backend.summon_full_params(wrapped, recurse=False),
        ):
            whole = model.generate(**inputs, generation_config=generation)
        sampled = whole[:, inputs["input_ids"].shape[1] :].tolist()
        return [up_to_end(ids, self.ends) for ids in sampled]

    def lend_weights(self) -> None:
        """Take part in a turn of other processes, after the last one here: a token that nobody reads."""
        one = self.generation(None)
        one.max_new_tokens = 1
        self.generate([[self._tokenizer.eos_token_id]], one)


class _Session:
    """Answers all requests together, as the longest turn among them is done."""

    def __init__(self, sampler: TransformersSampler, generation: GenerationConfig) -> None:
        self._sampler, self._generation = sampler, generation

    def sample(self, requests: Sequence[Request]) -> dict[int, Turn]:
        sampler = self._sampler
        if sampler.sharded:
            anywhere(True)
        sampled = sampler.generate([request.ids for request in requests], self._generation)
        return {
            request.episode: cut_turn(request, ids, None, sampler.ends, sampler.context)
            for request, ids in zip(requests, sampled, strict=True)
        }


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """`ids` up to and with the first end token; what follows is padding."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens any of which ends a turn: the tokenizer's end token, and those that the model declares."""
    declared = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return ids if tokenizer.eos_token_id in ids else [tokenizer.eos_token_id, *ids]
