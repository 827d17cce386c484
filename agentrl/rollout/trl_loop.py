"""The reference engine: TRL's sampling, given each episode's tools; one turn where there are none.

TRL 1.16 knows tools per trainer or per environment name, not per row. The seam used here is private and therefore
pinned and tested: before `GRPOTrainer._generate` runs, every row gets an environment name of its own, whose schemas
render its prompt. The loop over its turns is `agentrl.rollout.conversation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig
from trl import GRPOTrainer

from agentrl.chat.labels import CompletionLabeller
from agentrl.chat.reading import TokenReader
from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rollout.conversation import Played
from agentrl.rollout.guard import ToolsDied


class RowEnvironment:
    """What TRL insists on when tools vary by row; the real tools come from the episode's own environment."""

    def reset(self, **row: Any) -> None:
        """Nothing to do: episodes start fresh."""

    def placeholder(self) -> str:
        """Never offered to the model; TRL looks for at least one public method.

        Returns:
            The empty string.
        """
        return ""


class TrlToolLoop:
    """Plays episodes through the `GRPOTrainer` that owns the policy."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self._label = CompletionLabeller(trainer.processing_class, trainer.eos_token_ids)
        self._reader = TokenReader(trainer.processing_class)

    def place(self) -> None:
        """Put the model on the device: transformers leaves it to FSDP and DeepSpeed, which only begin with training."""
        if not self._trainer.place_model_on_device:
            self._trainer._move_model_to_device(self._trainer.model, self._trainer.args.device)

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        trainer = self._trainer
        tools = [episode.task.tools for episode in episodes]
        trainer._batch_environments = [("row", index) for index in range(len(episodes))]
        trainer._env_tools = dict(zip(trainer._batch_environments, tools, strict=True))
        environments = [episode.environment for episode in episodes]
        trainer.played = Played(environments, tools, [[] for _ in episodes], self._reader, set())
        try:
            with self._decoding(decoding), self._reader.alone():
                prompt_ids, completion_ids, tool_mask, completions, logprobs, *_ = GRPOTrainer._generate(
                    trainer, [episode.task.prompt for episode in episodes]
                )
        except ToolsDied as death:
            raise UserError(
                f"the tools of bench={trainer.bench.name} broke ({death}); mend them and give the same command, or let "
                "faults.dead_tools=continue count such calls as errors"
            ) from death
        masks = tool_mask if tool_mask is not None else [[1] * len(ids) for ids in completion_ids]
        ends = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
        trajectories = []
        for index, episode in enumerate(episodes):
            messages, calls = completions[index], trainer.played.calls[index]
            turn, component = self._label(completion_ids[index], masks[index], messages)
            # A tool runs before its result is found to exceed the budget; the model never saw such a result.
            answered = sum(message["role"] == "tool" for message in messages)
            trajectories.append(
                Trajectory(
                    task_id=episode.task.id,
                    prompt_ids=list(prompt_ids[index]),
                    completion_ids=list(completion_ids[index]),
                    policy_mask=list(masks[index]),
                    turn=turn,
                    component=component,
                    messages=messages,
                    calls=turns_of_calls(calls[:answered], messages),
                    truncated=index in trainer.played.cut or completion_ids[index][-1] not in ends,
                    logprobs=logprobs[index] if logprobs is not None else None,
                )
            )
        return trajectories

    @contextmanager
    def _decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Swap TRL's generation settings for the duration of one rollout."""
        trainer = self._trainer
        if decoding is None:
            yield
            return
        training = trainer.model.training
        trainer.model.eval()
        try:
            # Before training the model is not wrapped for autocast yet: base and trained model must compute alike.
            with trainer.accelerator.autocast(), self._evaluation_settings(decoding):
                yield
        finally:
            trainer.model.train(training)

    @contextmanager
    def _evaluation_settings(self, decoding: Decoding) -> Iterator[None]:
        trainer = self._trainer
        if trainer.use_vllm:
            backend = trainer.vllm_generation
            saved = (backend.temperature, backend.top_p, trainer.num_generations_eval)
            backend.temperature, backend.top_p = decoding.temperature, decoding.top_p
            trainer.num_generations_eval = 1  # the server samples this often per prompt, and ours all differ
            try:
                yield
            finally:
                backend.temperature, backend.top_p, trainer.num_generations_eval = saved
            return
        saved_config, saved_kwargs = trainer.generation_config, trainer.generation_kwargs
        kept = (
            "max_new_tokens",
            "min_p",
            "repetition_penalty",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "cache_implementation",
        )
        kwargs = {name: saved_kwargs[name] for name in kept}
        if decoding.temperature > 0:
            kwargs |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        else:
            kwargs |= {"do_sample": False}
        trainer.generation_config = GenerationConfig(**kwargs, disable_compile=True)
        trainer.generation_kwargs = kwargs
        try:
            yield
        finally:
            trainer.generation_config, trainer.generation_kwargs = saved_config, saved_kwargs


def turns_of_calls(calls: list[ToolCall], messages: list[dict[str, Any]]) -> list[ToolCall]:
    """Give each executed call the index of the assistant message that made it.

    The calls of one message are executed before the next turn is sampled, so order alone decides.
    """
    turned: list[ToolCall] = []
    position = 0
    for turn, message in enumerate(m for m in messages if m["role"] == "assistant"):
        for _ in message.get("tool_calls") or []:
            if position < len(calls):
                call = calls[position]
                turned.append(ToolCall(turn, call.name, call.arguments, call.observation, call.error))
                position += 1
    return turned
