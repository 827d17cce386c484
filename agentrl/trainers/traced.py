"""What trainers share whose loss has a term on expert traces: one trace beside each group of rollouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.core.bench import Task
from agentrl.objectives.supervised import prompt_mean
from agentrl.trainers.grpo import AgentGRPOTrainer
from agentrl.trainers.sft import IGNORED, TARGETS, trace_labels

NO_TRACE = TokenizedTrace([0], [0], [0], [0], [-1])


class TracedTrainer(AgentGRPOTrainer):
    """GRPO with a term on the expert trace of each prompt; a method says in `trace_losses` which.

    L, tokens of a trace; S, traces of a micro-batch. A trace travels with the first rollout of its group.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._experts: dict[str, TokenizedTrace | None] = {}

    def expert(self, task: Task) -> TokenizedTrace | None:
        """The expert's episode after the plain prompt, final answer included; None where the bench has no trace."""
        if task.id not in self._experts:
            trace = self.expert_trace(task)
            self._experts[task.id] = None if trace is None else tokenize_trace(self.chat, task, trace, with_answer=True)
        return self._experts[task.id]

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        """The trace that goes into the loss beside the group which begins at `row` of the rollout batch."""
        return self.expert(self._batch[row])

    def teaches(self, row: int, advantages: Tensor) -> bool:
        return super().teaches(row, advantages) or self.trace_teaches(row)

    def trace_teaches(self, row: int) -> bool:
        """Whether the trace beside the group that begins at `row` has a token to learn."""
        trace = self.trace_beside(row)
        return trace is not None and bool(self.trace_weights(trace).any())

    def trace_weights(self, trace: TokenizedTrace) -> Tensor:
        """Weights (L,) of a trace's tokens in its loss: 1 on what algo=sft trains on, 0 on observations."""
        labels = trace_labels(trace, list(TARGETS))[len(trace.prompt_ids) :]
        return (torch.tensor(labels) != IGNORED).float()

    def trace_losses(self, logps: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]) -> Tensor:
        """Loss (S,) of the traces beside `rows` of the micro-batch, from log-probs and weights (S, L)."""
        raise NotImplementedError

    def trace_term(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Mean of `trace_losses` over the micro-batch's prompts; 0 where none has a trace in it."""
        rows = [row for row, trace in enumerate(inputs["trace"]) if trace is not None]
        if not rows and self.accelerator.num_processes == 1:
            return inputs["advantages"].new_zeros(())
        traces = [inputs["trace"][row] for row in rows]
        weights = [self.trace_weights(trace) for trace in traces]
        if not rows:  # Every rank must run the same number of forwards: one that weighs nothing stands in.
            rows, traces, weights = [0], [NO_TRACE], [torch.zeros(1)]
        logps = self._trace_logps(model, traces)
        losses = self.trace_losses(logps, pad(weights, 0.0).to(logps.device), rows, inputs)
        return prompt_mean(losses, self.num_generations, len(inputs["trace"]))

    def _trace_logps(self, model: Any, traces: list[TokenizedTrace]) -> Tensor:
        """Log-probs (S, L) of the tokens of every trace after its prompt, padded on the right."""
        pad_id = self._tokenizer.pad_token_id
        prompts = [torch.tensor(trace.prompt_ids) for trace in traces]
        targets = [torch.tensor(trace.ids) for trace in traces]
        input_ids = torch.cat([pad(prompts, pad_id, padding_side="left"), pad(targets, pad_id)], dim=1)
        mask = torch.cat(
            [
                pad([torch.ones_like(ids) for ids in prompts], 0, padding_side="left"),
                pad([torch.ones_like(ids) for ids in targets], 0),
            ],
            dim=1,
        )
        device, length = self.accelerator.device, max(len(ids) for ids in targets)
        logps, _, _ = self._get_per_token_logps_and_entropies(model, input_ids.to(device), mask.to(device), length)
        return logps

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        group = self.num_generations
        batch["trace"] = [None if row % group else self.trace_beside(row) for row in range(len(inputs))]
        return batch
