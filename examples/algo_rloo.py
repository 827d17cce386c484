"""Your own algorithm: RLOO, which compares a rollout with the mean of the prompt's other rollouts.

Source: Ahmadian et al., arXiv 2402.14740. Rollouts, the clipped surrogate and the KL term are GRPO's.
"""

from __future__ import annotations

from torch import Tensor

from agentrl.trainers.grpo import AgentGRPOTrainer


def leave_one_out(returns: Tensor) -> Tensor:
    """Return A_k = R_k - mean of R_j over j != k, (N, K). `returns` is (N, K): N prompts with K >= 2 rollouts each."""
    others = (returns.sum(1, keepdim=True) - returns) / (returns.shape[1] - 1)
    return returns - others


class Trainer(AgentGRPOTrainer):
    def turn_advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Return advantages (B, T) for rewards (B, T): every turn of a rollout gets the rollout's advantage."""
        returns = rewards.sum(1).view(-1, self.num_generations)
        advantages = self.config.algo.options.get("scale", 1.0) * leave_one_out(returns)
        return advantages.reshape(-1, 1).expand_as(rewards)
