"""The base of trainers whose loss has a term on expert traces: each group of rollouts has one trace."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agentrl.chat.trace_messages import context_ids
from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.core.bench import Task
from agentrl.objectives.supervised import prompt_mean
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.trainers.diagnosis import MEASURES, diagnose
from agentrl.trainers.grpo import AgentGRPOTrainer
from agentrl.trainers.loss import Wanted, rollouts_after, rows_of_update, spread
from agentrl.trainers.sft import IGNORED, TARGETS, trace_labels
from agentrl.trainers.step_log import StepLog

SHOWN_TOKENS = 4096  # maximum tokens of the trace in [x; h*], for methods without a key for it


class TracedTrainer(AgentGRPOTrainer):
    """GRPO with a term on the expert trace of each prompt. A method implements the term in `trace_losses`.

    Shapes: L tokens of a trace, S traces of a piece. A trace belongs to the row of the first rollout of its group, and
    is scored in the same forward pass.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._experts: dict[str, TokenizedTrace | None] = {}

    def expert(self, task: Task) -> TokenizedTrace | None:
        """Return the expert's episode with its final answer, after the plain prompt. None if the task has no trace."""
        if task.id not in self._experts:
            trace = self.expert_trace(task)
            self._experts[task.id] = None if trace is None else tokenize_trace(self.chat, task, trace, with_answer=True)
        return self._experts[task.id]

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        """Return the trace that the loss uses for the group that begins at `row` of the rollout batch."""
        return self.expert(self._batch[row])

    def teaches(self, row: int, advantages: Tensor) -> bool:
        return super().teaches(row, advantages) or self.trace_teaches(row)

    def trace_teaches(self, row: int) -> bool:
        """Return whether the trace of the group that begins at `row` has a token with a weight."""
        trace = self.trace_beside(row)
        return trace is not None and bool(self.trace_weights(trace).any())

    def trace_weights(self, trace: TokenizedTrace) -> Tensor:
        """Return the weights (L,) of a trace's tokens in its loss: 1 on the tokens that algo=sft trains on, else 0."""
        labels = trace_labels(trace, list(TARGETS))[len(trace.prompt_ids) :]
        return (torch.tensor(labels) != IGNORED).float()

    def wanted(self, inputs: dict[str, Any]) -> Wanted:
        """Return the rollouts, and the traces after the plain prompts."""
        return {**super().wanted(inputs), "traces": self.traces_beside(inputs)}

    def traces_beside(self, inputs: dict[str, Any]) -> dict[int, Sequence]:
        """Return, by row, the traces with a token to learn, after their plain prompts."""
        sequences = {}
        for row, weights in self._weights_beside(inputs).items():
            trace, places = inputs["trace"][row], weights.nonzero().flatten()
            sequences[row] = Sequence(trace.prompt_ids + trace.ids, (places + len(trace.prompt_ids)).tolist())
        return sequences

    def _weights_beside(self, inputs: dict[str, Any]) -> dict[int, Tensor]:
        """Return, by row, the weights (L,) of the traces with a token to learn."""
        traces = {row: trace for row, trace in enumerate(inputs["trace"]) if trace is not None}
        weights = {row: self.trace_weights(trace) for row, trace in traces.items()}
        return {row: one for row, one in weights.items() if one.any()}

    def trace_losses(
        self, logps: Tensor, entropies: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]
    ) -> Tensor:
        """Return the loss (S,) of the traces of `rows` of the piece, from log-probs, entropies and weights (S, L)."""
        raise NotImplementedError

    def trace_term(self, inputs: dict[str, Any], scores: Scores) -> Tensor:
        """Return this piece's share of the mean of `trace_losses` over the prompts of the mini-batch."""
        beside = self._weights_beside(inputs)
        weights = pad_sequence([*beside.values()], batch_first=True) if beside else torch.zeros(0, 0)
        weights = weights.to(inputs["advantages"].device)
        logps, entropies = (spread(values, weights > 0) for values in (scores.logps, scores.entropies))
        losses = self.trace_losses(logps, entropies, weights, [*beside], inputs)
        return prompt_mean(losses, self.num_generations, rows_of_update(inputs))

    def context_with_trace(self, task: Task) -> list[int] | None:
        """Return the ids of [x; h*], or None if no trace is shown."""
        trace = self.expert_trace(task)
        return None if trace is None else context_ids(self.chat, task, trace, "message", SHOWN_TOKENS)[0]

    def whole_trace(self, task: Task) -> TokenizedTrace | None:
        """Return the trace that the method imitates, even if it is not used for its prompt in this update."""
        return self.expert(task)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        every = self.config.trainer.diagnose
        if every > 0 and self.model.training and self.state.global_step % every == 0:
            self._diagnose(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _diagnose(self, inputs: dict[str, Any]) -> None:
        """Log the measures of `diagnosis.diagnose` for this mini-batch, as means over the processes."""
        tasks = [self._batch[row] for row in inputs["row"].tolist()]
        under_h = {}
        for row, rollout in rollouts_after(inputs, "prompt").items():
            if (context := self.context_with_trace(tasks[row])) is not None:
                under_h[row] = rollout.after(context, int(inputs["prompt_mask"][row].sum()))
        traces = [None if row % self.num_generations else self.whole_trace(task) for row, task in enumerate(tasks)]
        inputs = {**inputs, "trace": traces, "rows_of_update": len(tasks)}
        model = self.accelerator.unwrap_model(self.model)
        self.log_step = StepLog()  # discards what the term logs; the update makes a new one
        found = diagnose(self, model, inputs, under_h, self.traces_beside(inputs), self.trace_term)
        known = torch.tensor([[0.0, 0.0] if math.isnan(found[name]) else [found[name], 1.0] for name in MEASURES])
        sums = self.accelerator.reduce(known.double().to(self.accelerator.device), reduction="sum").tolist()
        for name, (total, count) in zip(MEASURES, sums, strict=True):
            if count:
                self._metrics["train"][f"diagnose/{name}"].append(total / count)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        group = self.num_generations
        batch["trace"] = [None if row % group else self.trace_beside(row) for row in range(len(inputs))]
        return batch
