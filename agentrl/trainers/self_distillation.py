"""OPSD, SDAR and RLSD: the policy itself, with the expert trace in its context, is the teacher of its rollouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentrl.chat.trace_tokens import TokenizedTrace
from agentrl.core.bench import Task
from agentrl.objectives.distillation import credit_weights, falling_share, gated_gap, reverse_kl
from agentrl.objectives.policy import average
from agentrl.scoring.sequence import Scores
from agentrl.trainers.loss import rollouts_after, spread, trained_tokens
from agentrl.trainers.traced import TracedTrainer


class SelfDistillationTrainer(TracedTrainer):
    """GRPO whose rollouts are also scored under [x; h*], once per rollout batch. The sampling policy is the teacher.

    A rollout of a task without a trace has no teacher and trains as under GRPO.
    """

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        return None  # the loss has no term on the trace itself

    def whole_trace(self, task: Task) -> TokenizedTrace | None:
        return None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        under_x = rollouts_after(batch, "prompt")
        contexts = [self.context_with_trace(task) for task in self._batch]
        taught = [row for row in under_x if contexts[row] is not None]
        own = batch["prompt_mask"].sum(1).tolist()
        under_h = {row: under_x[row].after(contexts[row] or [], own[row]) for row in taught}
        mask = trained_tokens(batch)
        batch["teacher_logps"] = self.score_rows(self.model, under_h, taught, mask)
        batch["taught"] = torch.tensor([row in under_h for row in range(len(inputs))], device=mask.device)
        return batch

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        algo, mask = self.config.algo, trained_tokens(inputs)
        student = spread(scored["rollouts"].logps, mask)
        taught = mask * inputs["taught"][:, None]
        values = self.distillation(student, inputs["teacher_logps"]).masked_fill(taught == 0, 0)
        counts = self.counts(inputs)
        term = average(values, mask, algo.loss_aggregation, counts["tokens"], counts["rows"])
        self.log_step.add("loss/distillation", term)
        self.log_step.add_means({"distillation/shift": inputs["teacher_logps"] - student}, taught)
        loss = algo.coef * term
        if algo.rl_coef > 0:
            rl = self.policy_term(inputs, scored["rollouts"])
            self.log_step.add("loss/rl", rl)
            loss = loss + algo.rl_coef * rl
        return loss

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distillation term of each token (B, C), from log-probs (B, C) of student and teacher."""
        raise NotImplementedError

    def teaches(self, row: int, advantages: Tensor) -> bool:
        """Return whether the group has a signal. A group whose advantages are all 0 still learns from its teacher."""
        return super().teaches(row, advantages) or self.context_with_trace(self._batch[row]) is not None


class OpsdTrainer(SelfDistillationTrainer):
    """L = rl_coef L_GRPO + coef KL(student || teacher)."""

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return reverse_kl(student, teacher)


class SdarTrainer(SelfDistillationTrainer):
    """L = rl_coef L_GRPO + coef times the gap to the teacher, gated by the gap."""

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return gated_gap(student, teacher, self.config.algo.sharpness)


class RlsdTrainer(SelfDistillationTrainer):
    """GRPO whose advantages are weighted token by token, by how the teacher's log-probs differ from the student's."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch, algo = super()._generate_and_score_completions(inputs), self.config.algo
        mask, taught = trained_tokens(batch), batch["taught"].nonzero().flatten().tolist()
        under_x = self.score_rows(self.model, rollouts_after(batch, "prompt"), taught, mask)
        share = falling_share(algo.share, self.state.global_step, algo.share_steps)
        shift = batch["teacher_logps"] - under_x  # 0 in rows without a teacher
        batch["advantages"] = batch["advantages"] * credit_weights(batch["advantages"], shift, share, algo.share_clip)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["anneal/share"].append(share)
        return batch

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        return self.policy_term(inputs, scored["rollouts"])

    def teaches(self, row: int, advantages: Tensor) -> bool:
        """Return whether an advantage of the group is not 0. The weights leave an advantage of 0 at 0."""
        return bool(advantages[row : row + self.num_generations].any())
