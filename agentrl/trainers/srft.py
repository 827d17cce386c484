"""SRFT: SFT and RL on the expert trace, and RL on rollouts, in one loss with weights from the policy's entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from agentrl.objectives.luffy import expert_loss, mixed_advantages
from agentrl.objectives.policy import PolicySettings
from agentrl.objectives.srft import demonstration_loss, self_weights
from agentrl.objectives.supervised import prompt_mean
from agentrl.scoring.sequence import Scores
from agentrl.trainers.loss import LossTrainer, rows_of_update, spread, trained_tokens
from agentrl.trainers.luffy import LuffyTrainer
from agentrl.trainers.traced import TracedTrainer


class SrftTrainer(LuffyTrainer):
    """L = L_SFT(h*) + L_RL(h*) + L_RL(rollouts). As in LUFFY, the trace is a member of its group and earns a reward."""

    def policy_settings(self) -> PolicySettings:
        return LossTrainer.policy_settings(self)  # GRPO's clip, which LUFFY removes

    def compare_members(self, returns: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        return mixed_advantages(returns, experts, self.config.algo.advantage_eps)

    def trace_teaches(self, row: int) -> bool:
        return super().trace_teaches(row) or (self.config.algo.sft_coef > 0 and TracedTrainer.trace_teaches(self, row))

    def trace_losses(
        self, logps: Tensor, entropies: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]
    ) -> Tensor:
        algo = self.config.algo
        imitation, used = demonstration_loss(logps, entropies, weights, algo.sft_coef, algo.sft_slope)
        reinforcement, _ = expert_loss(logps, weights, inputs["expert_advantage"][rows], algo.shaping)
        self.log_step.add_means({"expert/weight": used}, weights > 0)
        for name, losses in (("loss/sft", imitation), ("loss/expert", reinforcement)):
            self.log_step.add(name, prompt_mean(losses, self.num_generations, rows_of_update(inputs)))
        return imitation + reinforcement

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        algo, mask = self.config.algo, trained_tokens(inputs)
        entropies = spread(scored["rollouts"].entropies, mask)
        weights = self_weights(inputs["advantages"], entropies, algo.positive_coef, algo.positive_slope)
        weighed = {**inputs, "advantages": inputs["advantages"] * weights}
        rollouts = self.policy_term(weighed, scored["rollouts"])
        self.log_step.add("loss/rl", rollouts)
        return rollouts + self.trace_term(inputs, scored["traces"])
