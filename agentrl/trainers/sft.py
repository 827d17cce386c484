"""Supervised fine-tuning on expert traces: TRL's SFTTrainer with tokenised traces and the loss of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from agentrl.chat.format import ChatFormat
from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.config.schema import Trainer as Settings
from agentrl.core.bench import Bench, ExpertTraces, Task, TwoSided
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Component
from agentrl.models.adapters import lora_config
from agentrl.objectives.supervised import token_nll
from agentrl.scoring.choose import scoring_engine
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.trainers.arguments import sft_arguments
from agentrl.trainers.parts import Parts
from agentrl.trainers.passes import CutsUpdates

TARGETS = {"reasoning": Component.REASONING, "tool_call": Component.TOOL_CALL, "answer": Component.ANSWER}
IGNORED = -100


def trace_labels(trace: TokenizedTrace, components: list[str]) -> list[int]:
    """Return the labels of prompt and trace: the token's id if its component is a target, else -100.

    Delimiters (white space, and the tokens that end a turn) count to the component before them, or at the beginning of
    a turn to the component after them. Literal previews of a call are never targets.
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
    """Make a dataset with one row per task that has an expert trace: `input_ids` and `labels`.

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


def reply_dataset(chat: ChatFormat, bench: TwoSided, tasks: list[Task], expert_trace: ExpertTraces) -> Dataset:
    """Make a dataset with one row per task that has an expert trace: its answer and the end token are the targets.

    Raises:
        UserError: no task has a trace, or the chat template changes the prompt once a reply follows.
    """
    rows = []
    for task in tasks:
        trace = expert_trace(task)
        if trace is None:
            continue
        prompt = chat.prompt_ids(task.prompt, [])
        message = {"role": "assistant", "content": trace.answer}
        whole, end = chat.training_text([*task.prompt, message], [], generation_prompt=False), chat.turns.answer_end
        ids = chat.ids(whole[: whole.rfind(end) + len(end)])  # leave out what follows the end token
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"the chat template of {chat.tokenizer.name_or_path} writes the prompt differently once a reply "
                "follows, so the reply's tokens cannot be separated from it; choose another model"
            )
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]})
    if not rows:
        raise UserError(
            f"bench={bench.name}: none of its {len(tasks)} training tasks has an expert reply to imitate; give replies "
            "with traces=FILE"
        )
    return Dataset.from_list(rows)


def expert_dataset(
    chat: ChatFormat,
    bench: Bench,
    tasks: list[Task],
    components: list[str],
    expert_trace: ExpertTraces | None = None,
) -> Dataset:
    """Make the dataset that SFT imitates: whole replies if the bench is two-sided, else chosen components of traces.

    The traces come from `expert_trace`, or from the bench if that is None.
    """
    expert_trace = expert_trace or bench.expert_trace
    if isinstance(bench, TwoSided):
        return reply_dataset(chat, bench, tasks, expert_trace)
    return trace_dataset(chat, bench, tasks, components, expert_trace)


@dataclass(frozen=True)
class Piece:
    """Some traces of an update, with their targets scored."""

    sequences: list[Sequence]
    share: float  # share of this piece in the rows of the update
    targets: Tensor  # number of targets in the whole update, averaged over the processes


class TraceSFTTrainer(CutsUpdates, SFTTrainer):
    """Cross-entropy on the chosen components of expert traces, averaged over the targets of an update."""

    def __init__(
        self, *, chat: ChatFormat, settings: Settings, say: Callable[[str], None] = print, **kwargs: Any
    ) -> None:
        super().__init__(processing_class=chat.tokenizer, **kwargs)
        self._budget = settings.tokens_per_batch
        self.scorer = scoring_engine(settings.engine, [self.model], self.aux_loss_enabled, say)

    def cut(self, inputs: dict[str, Tensor]) -> list[Piece]:
        """Cut the rows of TRL's batch into pieces that keep to the token budget."""
        self.count_tokens(inputs["attention_mask"])
        rows = zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True)
        sequences = [labelled_sequence(*row) for row in rows]
        count = torch.tensor(sum(len(one.scored) for one in sequences), device=self.accelerator.device)
        targets = self.accelerator.reduce(count, reduction="sum") / self.accelerator.num_processes
        ranges = self.scorer.cut([[one] for one in sequences], self._budget)
        return [Piece(sequences[one.start : one.stop], len(one) / len(sequences), targets) for one in ranges]

    def piece_loss(self, model: Any, piece: Piece) -> Tensor:
        sequences = [one for one in piece.sequences if one.scored]
        scores = Scores([], [])
        if sequences:
            with self.accelerator.autocast():
                scores = self.scorer.score(model, sequences, router=self.aux_loss_enabled)
        none = piece.targets.new_zeros(0)
        logps, entropies, best = (torch.cat([none, *one]) for one in (scores.logps, scores.entropies, scores.best))
        self.log_step.add_means({"entropy": entropies, "mean_token_accuracy": best})
        loss = token_nll(logps, piece.targets) if sequences else self.idle_loss(model)
        return self.add_router_loss(loss, scores, piece.share)


def labelled_sequence(ids: Tensor, mask: Tensor, labels: Tensor) -> Sequence:
    """Convert a padded row (L,) to a sequence whose labelled tokens are scored."""
    kept = mask.bool()
    places = (labels[kept] != IGNORED).nonzero().flatten()
    return Sequence(ids[kept].tolist(), places[places > 0].tolist())


def sft_trainer(parts: Parts) -> TraceSFTTrainer:
    """Build the SFT trainer, with the expert traces or the expert replies of the training tasks."""
    config, components = parts.config, parts.config.algo.components
    return TraceSFTTrainer(
        model=parts.model,
        chat=parts.chat,
        args=sft_arguments(config, parts.run.checkpoints_dir),
        train_dataset=expert_dataset(parts.chat, parts.bench, parts.tasks, components, parts.expert_trace),
        peft_config=lora_config(config.model),
        settings=config.trainer,
        say=parts.console.say,
    )
