"""Supervised fine-tuning on expert traces: TRL's SFTTrainer on traces that arrive tokenised and labelled."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTTrainer

from agentrl.benches.base import Bench, Task
from agentrl.benches.hif.base import SingleTurn
from agentrl.chat import ChatFormat, TokenizedTrace, tokenize_trace
from agentrl.errors import UserError
from agentrl.trajectory import Component

TARGETS = {"reasoning": Component.REASONING, "tool_call": Component.TOOL_CALL, "answer": Component.ANSWER}
IGNORED = -100


def trace_labels(trace: TokenizedTrace, components: list[str]) -> list[int]:
    """Labels of prompt and trace: the id where its component is a target, -100 elsewhere.

    The token that ends a turn is a target with the component before it; literal previews of a call never are.
    """
    wanted = {TARGETS[name] for name in components}
    labels = [IGNORED] * len(trace.prompt_ids)
    previous: int | None = None
    for token, component, chunk in zip(trace.ids, trace.component, trace.chunk, strict=True):
        preview = component == Component.REASONING and chunk < 0
        ends_turn = component == Component.DELIMITER and previous in wanted
        labels.append(token if (component in wanted and not preview) or ends_turn else IGNORED)
        previous = component
    return labels


def trace_dataset(chat: ChatFormat, bench: Bench, tasks: list[Task], components: list[str]) -> Dataset:
    """One row per task that has an expert trace: `input_ids` and `labels`.

    Raises:
        UserError: no task has a trace.
    """
    rows = []
    for task in tasks:
        trace = bench.expert_trace(task)
        if trace is None:
            continue
        tokens = tokenize_trace(chat, task, trace, with_answer="answer" in components)
        rows.append({"input_ids": tokens.prompt_ids + tokens.ids, "labels": trace_labels(tokens, components)})
    if not rows:
        raise UserError(f"bench={bench.name}: none of its {len(tasks)} training tasks has an expert trace to imitate")
    return Dataset.from_list(rows)


def reply_dataset(chat: ChatFormat, bench: SingleTurn, tasks: list[Task]) -> Dataset:
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
        whole = chat.text([*task.prompt, {"role": "assistant", "content": reply}], [], generation_prompt=False)
        ids = chat.ids(whole.rstrip())  # templates write a line break after the token that ends the turn
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"the chat template of {chat.tokenizer.name_or_path} writes a reply otherwise than it asks for one, so "
                "its tokens cannot be told from the prompt's; choose another model"
            )
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]})
    if not rows:
        raise UserError(f"bench={bench.name}: none of its {len(tasks)} training tasks has an expert reply to imitate")
    return Dataset.from_list(rows)


def expert_dataset(chat: ChatFormat, bench: Bench, tasks: list[Task], components: list[str]) -> Dataset:
    """What SFT imitates: whole replies where a bench has them, else the chosen components of its expert traces."""
    if isinstance(bench, SingleTurn):
        return reply_dataset(chat, bench, tasks)
    return trace_dataset(chat, bench, tasks, components)


class TraceSFTTrainer(SFTTrainer):
    """Cross-entropy on the chosen components of expert traces, averaged over tokens."""

    _total_train_tokens: int  # TRL's own

    def __init__(self, **kwargs: Any) -> None:
        chat: ChatFormat = kwargs.pop("chat")
        super().__init__(processing_class=chat.tokenizer, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; its count of tokens seen goes into the trainer's state, so that it survives a resumption."""
        self._total_train_tokens = max(self._total_train_tokens, self.state.num_input_tokens_seen)
        result = super().compute_loss(*args, **kwargs)
        self.state.num_input_tokens_seen = self._total_train_tokens
        return result
