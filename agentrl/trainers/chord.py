"""CHORD: one loss of GRPO and SFT on the expert trace of each prompt. Their balance mu changes during training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from agentrl.objectives.chord import chord_sft_loss, mixed_loss
from agentrl.objectives.schedules import warmup_cosine
from agentrl.scoring.sequence import Scores
from agentrl.trainers.traced import TracedTrainer


class ChordTrainer(TracedTrainer):
    """L = (1 - mu) L_GRPO + mu L_SFT. L_GRPO includes the KL and entropy terms."""

    def trace_teaches(self, row: int) -> bool:
        return self.config.algo.mu.peak > 0 and super().trace_teaches(row)

    def trace_losses(
        self, logps: Tensor, entropies: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]
    ) -> Tensor:
        losses, used = chord_sft_loss(logps, weights, self.config.algo.token_weight)
        if self.config.algo.token_weight == "phi":  # uniform weights are 1, so they are not logged
            self.log_step.add_means({"expert/weight": used}, weights > 0)
        return losses

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        mu = self.config.algo.mu
        share = warmup_cosine(self.state.global_step, mu.peak, mu.valley, mu.warmup_steps, mu.decay_steps)
        grpo, sft = self.policy_term(inputs, scored["rollouts"]), self.trace_term(inputs, scored["traces"])
        self.log_step.add("loss/rl", grpo)
        self.log_step.add("loss/sft", sft)
        self.log_step.constant("anneal/mu", share)
        return mixed_loss(grpo, sft, share)
