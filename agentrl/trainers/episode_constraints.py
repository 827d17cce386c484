"""Constraints on a measure of an episode with tools: the number of its calls, or a metric of the bench."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from agentrl.config.constraints import EpisodeConstraint
from agentrl.evaluation.tasks import check_measures
from agentrl.objectives.advantages import trajectory_advantage
from agentrl.trainers.constraints import ConstrainedTrainer


class EpisodeConstrainedTrainer(ConstrainedTrainer):
    """A = A_task + sum_k lambda_k A_k. A_k is the advantage of the measure of constraint k in the group of a prompt.

    The dual step is that of HIPO: every lambda_k is updated once per rollout batch, from the mean of its measure.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_measures(
            self.config.algo.constraints, self.bench, self.tasks[0]
        )  # a bench of the user was not checked before

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        self._log_constraints()
        if self.model.training:
            self.update_dual()
        return batch

    def measured(self, constraint: EpisodeConstraint) -> Tensor:
        if constraint.measure == "calls":
            values: list[float | None] = [float(len(trajectory.calls)) for trajectory in self._trajectories]
        else:
            pairs = zip(self._batch, self._trajectories, strict=True)
            values = [self.bench.score(task, played).metrics.get(constraint.measure) for task, played in pairs]
        column = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
        return constraint.sign * column

    def turn_advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Return the advantages (B, T) of the rewards plus those of the measures times their multipliers."""
        total, algo = super().turn_advantages(rewards, mask), self.config.algo
        for constraint, multiplier in zip(algo.constraints, self.dual.values().tolist(), strict=True):
            measured = self.measured(constraint).view(-1, self.num_generations)
            advantage = trajectory_advantage(measured, algo.advantage.eps).reshape(-1, 1)
            total = total + multiplier * advantage.to(total) * mask
        return total

    def _log_constraints(self) -> None:
        """Log each constraint and its multiplier as this batch used them, in the units of the measure."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for constraint, multiplier in zip(self.config.algo.constraints, self.dual, strict=True):
            mean = self._mean(self.measured(constraint))
            metrics[f"lambda/{constraint.name}"].append(float(multiplier.value))
            metrics[f"tau/{constraint.name}"].append(constraint.sign * constraint.threshold)
            if not math.isnan(multiplier.ema):
                metrics[f"ema/{constraint.name}"].append(constraint.sign * float(multiplier.ema))
            if mean is not None:
                metrics[f"slack/{constraint.name}"].append(mean - constraint.threshold)
