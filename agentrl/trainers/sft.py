"""Supervised fine-tuning on expert traces: TRL's SFTTrainer on traces that arrive tokenised and labelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from trl import SFTTrainer

from agentrl.chat.format import ChatFormat
from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.core.bench import Bench, ExpertTraces, Task, TwoSided
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Component
from agentrl.models.adapters import lora_config
from agentrl.scoring.forward import pack_forward
from agentrl.trainers.arguments import sft_arguments
from agentrl.trainers.parts import Parts

TARGETS = {"reasoning": Component.REASONING, "tool_call": Component.TOOL_CALL, "answer": Component.ANSWER}
IGNORED = -100


def trace_labels(trace: TokenizedTrace, components: list[str]) -> list[int]:
    """Labels of prompt and trace: the id where its component is a target, -100 elsewhere.

    What ends a turn, and white space in it, goes with the part before it, or after it where a turn begins; literal
    previews of a call never are targets.
    """
    wanted = {TARGETS[name] for name in components}
    kinds = list(trace.component)
    after: int = Component.OBSERVATION
    following = [after := kind if kind != Component.DELIMITER else after for kind in reversed(kinds)][::-1]
    labels = [IGNORED] * len(trace.prompt_ids)
    before: int = Component.OBSERVATION
    for token, kind, chunk, upcoming in zip(trace.ids, kinds, trace.chunk, following, strict=True):
        preview = kind == Component.REASONING and chunk < 0
        if kind == Component.DELIMITER:
            kind = upcoming if before == Component.OBSERVATION else before
        else:
            before = kind
        labels.append(token if kind in wanted and not preview else IGNORED)
    return labels


def trace_dataset(
    chat: ChatFormat, bench: Bench, tasks: list[Task], components: list[str], expert_trace: ExpertTraces
) -> Dataset:
    """One row per task that has an expert trace: `input_ids` and `labels`.

    Raises:
        UserError: no task has a trace.
    """
    rows = []
    for task in tasks:
        trace = expert_trace(task)
        if trace is None:
            continue
        tokens = tokenize_trace(chat, task, trace, with_answer="answer" in components)
        rows.append({"input_ids": tokens.prompt_ids + tokens.ids, "labels": trace_labels(tokens, components)})
    if not rows:
        raise UserError(f"bench={bench.name}: none of its {len(tasks)} training tasks has an expert trace to imitate")
    return Dataset.from_list(rows)


def reply_dataset(chat: ChatFormat, bench: TwoSided, tasks: list[Task]) -> Dataset:
    """One row per task that has an expert reply: its tokens and the one that ends it are the targets.

    Raises:
        UserError: no task has one.
    """
    rows = []
    for task in tasks:
        reply = bench.expert_response(task)
        if reply is None:
            continue
        prompt = chat.prompt_ids(task.prompt, [])
        message = {"role": "assistant", "content": reply}
        whole, end = chat.training_text([*task.prompt, message], [], generation_prompt=False), chat.turns.answer_end
        ids = chat.ids(whole[: whole.rfind(end) + len(end)])  # what follows the token that ends the turn is left out
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"the chat template of {chat.tokenizer.name_or_path} writes a reply otherwise than it asks for one, so "
                "its tokens cannot be told from the prompt's; choose another model"
            )
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]})
    if not rows:
        raise UserError(f"bench={bench.name}: none of its {len(tasks)} training tasks has an expert reply to imitate")
    return Dataset.from_list(rows)


def expert_dataset(
    chat: ChatFormat,
    bench: Bench,
    tasks: list[Task],
    components: list[str],
    expert_trace: ExpertTraces | None = None,
) -> Dataset:
    """What SFT imitates: whole replies where a bench has them, else the chosen components of expert traces.

    The traces are the bench's own, or those of `expert_trace`.
    """
    if isinstance(bench, TwoSided):
        return reply_dataset(chat, bench, tasks)
    return trace_dataset(chat, bench, tasks, components, expert_trace or bench.expert_trace)


class TraceSFTTrainer(SFTTrainer):
    """Cross-entropy on the chosen components of expert traces, averaged over tokens."""

    _total_train_tokens: int  # TRL's own

    def __init__(self, *, engine: str = "packed", say: Callable[[str], None] = print, **kwargs: Any) -> None:
        chat: ChatFormat = kwargs.pop("chat")
        super().__init__(processing_class=chat.tokenizer, **kwargs)
        pack_forward([self.model], engine, self.aux_loss_enabled, say)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; its count of tokens seen goes into the trainer's state, so that it survives a resumption."""
        self._total_train_tokens = max(self._total_train_tokens, self.state.num_input_tokens_seen)
        result = super().compute_loss(*args, **kwargs)
        self.state.num_input_tokens_seen = self._total_train_tokens
        return result


def sft_trainer(parts: Parts) -> TraceSFTTrainer:
    """SFT on the expert traces, or the expert replies, of the training tasks."""
    config, components = parts.config, parts.config.algo.components
    return TraceSFTTrainer(
        model=parts.model,
        chat=parts.chat,
        args=sft_arguments(config, parts.run.checkpoints_dir),
        train_dataset=expert_dataset(parts.chat, parts.bench, parts.tasks, components, parts.expert_trace),
        peft_config=lora_config(config.model),
        engine=config.trainer.engine,
        say=parts.console.say,
    )
