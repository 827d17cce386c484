"""LUFFY: the expert trace joins each group as one more member, with its own reward, advantage and loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from agentrl.chat.trace_messages import turn_messages
from agentrl.core.bench import Task
from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.trajectory import Trajectory
from agentrl.objectives.luffy import expert_loss, member_shares, mixed_advantages
from agentrl.objectives.policy import PolicySettings
from agentrl.scoring.sequence import Scores
from agentrl.trainers.traced import TracedTrainer


def expert_trajectory(trace: ExpertTrace, reasoning: str) -> Trajectory:
    """Convert a trace to a trajectory for the reward: messages with the final answer, and executed calls, no tokens.

    `tokenize_trace` makes the tokens. `reasoning` says where thoughts are written, see schema.Model.reasoning.
    """
    messages = [message for turn in trace.turns for message in turn_messages(turn, reasoning)]
    messages.append({"role": "assistant", "content": f"<answer>{trace.answer}</answer>"})
    return Trajectory(trace.task_id, [], [], [], [], [], messages, trace.executed_calls())


class LuffyTrainer(TracedTrainer):
    """L = mean over prompts, and over K rollouts and the expert, of -(A / n) sum of ratios.

    A is the centred return, without division by the standard deviation. The ratios of rollouts are not clipped; the
    ratio of an expert token is p / (p + gamma).
    """

    _expert_advantages: Tensor  # (N,) of the prompts of the rollout batch, NaN for a prompt without a trace

    def policy_settings(self) -> PolicySettings:
        """Return settings without a clip, with the mean over the members of a group."""
        algo = self.config.algo
        return PolicySettings(
            clip_eps=math.inf,
            aggregation="sequence",
            kl_coef=algo.kl_coef,
            kl_ratio_correction=algo.kl_ratio_correction,
            entropy_coef=algo.entropy_coef,
        )

    def turn_advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Return advantages (B, T): the returns compared over all members of a group, the same for every turn."""
        tasks = self._batch[:: self.num_generations]
        experts = torch.tensor([self._expert_return(task) for task in tasks], dtype=rewards.dtype)
        returns = rewards.sum(1).view(-1, self.num_generations)
        advantages, self._expert_advantages = self.compare_members(returns, experts)
        return advantages.reshape(-1, 1).expand_as(rewards)

    def compare_members(self, returns: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the advantages of the rollouts (N, K) and of the expert (N,) of each group."""
        return mixed_advantages(returns, experts)

    def _expert_return(self, task: Task) -> float:
        """Return the trace's return under the same reward as the rollouts, or NaN if the task has no trace."""
        trace = self.expert_trace(task)
        if trace is None:
            return math.nan
        return sum(self.rewards_of(task, expert_trajectory(trace, self.chat.reasoning)))

    def trace_teaches(self, row: int) -> bool:
        """Return whether the expert's advantage is not 0. It is 0 if all members of the group earn the same."""
        return bool(self._expert_advantages[row // self.num_generations].abs() > 0)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        experts = self._expert_advantages
        batch["expert_advantage"] = experts.repeat_interleave(self.num_generations).to(batch["advantages"])
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["expert/advantage"].append(self._global_mean(experts[~torch.isnan(experts)].tolist()))
        written = sum(float(self.trace_weights(trace).sum()) for trace in batch["trace"] if trace is not None)
        sampled = float((batch["completion_mask"] * batch["tool_mask"]).sum())
        tokens = torch.tensor([written, sampled], dtype=torch.float64, device=self.accelerator.device)
        written, sampled = self.accelerator.reduce(tokens, reduction="sum").tolist()
        metrics["expert/share"].append(written / (written + sampled))
        return batch

    def trace_losses(
        self, logps: Tensor, entropies: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]
    ) -> Tensor:
        advantages = inputs["expert_advantage"][rows]
        losses, ratios = expert_loss(logps, weights, advantages, self.config.algo.shaping)
        self.log_step.add_means({"expert/weight": ratios}, weights > 0)
        return losses / (self.num_generations + 1)

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        # Without a clip the surrogate is linear in the advantages, so the members' shares can be multiplied into them.
        shares = member_shares(inputs["expert_advantage"], self.num_generations)
        shared = {**inputs, "advantages": inputs["advantages"] * shares[:, None]}
        rollouts, expert = self.policy_term(shared, scored["rollouts"]), self.trace_term(inputs, scored["traces"])
        self.log_step.add("loss/rl", rollouts)
        self.log_step.add("loss/expert", expert)
        return rollouts + expert
