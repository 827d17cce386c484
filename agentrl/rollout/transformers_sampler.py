"""A sampler over a model in this process. It samples by continuous batching, or by transformers' `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from agentrl.config.cache import cache_budget
from agentrl.config.schema import Config
from agentrl.core.engine import Decoding
from agentrl.core.stop import any_process
from agentrl.models.modes import evaluating
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed, why_unsupported
from agentrl.rollout.replays import Replays
from agentrl.rollout.sampler import Request, Session, Turn, always_false, cut_turn


class TransformersSampler:
    """Samples from the model that `model()` returns: the model as accelerate has wrapped it at that time.

    It uses continuous batching (`continuous.Continuous`) if it can. It falls back to `generate`, which samples one
    padded batch per turn and gives no log-probs, if the attention of the model is unusual (`packed.why_unsupported`) or
    if the weights are sharded over several processes. With sharded weights every forward pass needs all processes, so a
    process whose episodes have ended takes part in the turns of the others.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerFast,
        config: Config,
        checkpointing: dict[str, Any] | None = None,  # arguments to switch gradient checkpointing on again afterwards
    ) -> None:
        self._model, self._accelerator, self._checkpointing = model, accelerator, checkpointing
        self._rollout, self._bf16 = config.rollout, config.hardware.bf16
        self._backend = DistributedBackend(accelerator)
        self._tokenizer = tokenizer
        unwrapped = accelerator.unwrap_model(model())
        self.ends: Sequence[int] = end_tokens(unwrapped, tokenizer)
        self.context = int(unwrapped.config.get_text_config().max_position_embeddings)
        on_gpu = accelerator.device.type == "cuda"
        # What processes exchange cannot be recorded, nor which experts a token goes to.
        exchanging = self._backend.is_fsdp or self._backend.is_zero3
        experts = getattr(unwrapped.config.get_text_config(), "num_experts_per_tok", None)
        self._replayed = config.trainer.engine == "compiled" and on_gpu and not exchanging and not experts
        self._longest_turn = self._rollout.max_turn_tokens or self._rollout.max_completion_tokens
        self._budget = cache_budget(self._rollout, self.context)
        if not self.sharded and (why := why_unsupported(unwrapped)) is not None:
            warnings.warn(
                f"rollouts are sampled by transformers' generate, one padded batch per turn, which is slower: {why}",
                stacklevel=2,
            )

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self._accelerator.num_processes > 1 and (self._backend.is_fsdp or self._backend.is_zero3)

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[Session]:
        """See `Sampler.session`. The model is in evaluation mode meanwhile, since dropout is not part of the policy."""
        # Before training, the model is not wrapped for autocast yet, but the base and the trained model must compute
        # alike, so autocast is set here. Within autocast, trained weights are cast once and kept for the whole session
        # (frozen ones are cast in every pass). In training, sharded weights of other processes must not be kept, so it
        # stays off for them.
        cast = self._bf16 and not (self.sharded and decoding is None)
        with evaluating(self._model()), torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=cast):
            if self.sharded or why_unsupported(self._accelerator.unwrap_model(self._model())) is not None:
                yield _Rounds(self, self.generation(decoding))
                while self.sharded and any_process(False):
                    self.lend_weights()
                return
            with (
                unwrap_model_for_generation(
                    self._model(), self._accelerator, gradient_checkpointing_kwargs=self._checkpointing
                ) as model,
                torch.no_grad(),
                packed(model),
            ):
                replays = Replays(model) if self._replayed else None
                yield Continuous(
                    model,
                    Draw(self._decoding(decoding)),
                    self.ends,
                    self.context,
                    self._longest_turn,
                    self._budget,
                    replays,
                )
                self._replayed = replays is not None and replays.works

    def _decoding(self, decoding: Decoding | None) -> Decoding:
        return decoding or Decoding(self._rollout.temperature, self._rollout.top_p)

    def generation(self, decoding: Decoding | None) -> GenerationConfig:
        """Make the settings for `generate`. Every turn may have `rollout.max_turn_tokens` tokens."""
        chosen = self._decoding(decoding)
        how: dict[str, Any] = {"do_sample": False}
        if chosen.temperature > 0:
            how = {"do_sample": True, "temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=self._longest_turn,
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=list(self.ends),
            repetition_penalty=1.0,
            disable_compile=True,
            **how,
        )

    def generate(self, prompts: list[list[int]], generation: GenerationConfig) -> list[list[int]]:
        """Sample one turn after each prompt. Return the ids of each turn, up to and including the first end token."""
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

    def sample_from(self, model: Callable[[], Any]) -> None:
        """Sample from what `model` returns: the outermost module, which FSDP2 has shared out."""
        self._model = model

    def lend_weights(self) -> None:
        """Take part in a turn of other processes after the last turn of this one, by sampling a token for nothing."""
        one = self.generation(None)
        one.max_new_tokens = 1
        self.generate([[self._tokenizer.eos_token_id]], one)


class _Rounds:
    """A session that answers all requests together, when the longest turn among them has ended."""

    def __init__(self, sampler: TransformersSampler, generation: GenerationConfig) -> None:
        self._sampler, self._generation = sampler, generation

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        sampler = self._sampler
        if sampler.sharded:
            any_process(True)
        sampled = sampler.generate([request.ids for request in requests], self._generation)
        return {
            request.episode: cut_turn(request, ids, None, sampler.ends, sampler.context)
            for request, ids in zip(requests, sampled, strict=True)
        }


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return `ids` up to and including the first end token, without the padding after it."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of the tokens that end a turn: the tokenizer's end token and those that the model declares."""
    declared = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return ids if tokenizer.eos_token_id in ids else [tokenizer.eos_token_id, *ids]
