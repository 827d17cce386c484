"""RePO (arXiv 2410.19933): HIPO with a constraint on every reply, in place of one on the mean.

A reply that earns more than the threshold makes up for no other reply: only what it lacks counts. The constraint
E[max(tau - r, 0)] <= 0 is E[min(r, tau)] >= tau, so everything is HIPO's but for the measure. What a multiplier follows
is never above tau, so it never falls, but for the proportional and the differential part of dual=pid.
"""

from __future__ import annotations

from torch import Tensor

from agentrl.config.constraints import Constraint, EpisodeConstraint
from agentrl.trainers.hipo import HipoTrainer


class RepoTrainer(HipoTrainer):
    """Maximises E[r_user] subject to r_k >= tau_k for every reply."""

    def measured(self, constraint: Constraint) -> Tensor:
        return super().measured(constraint).clamp(max=constraint.threshold)  # NaN stays NaN

    def measure_label(self, constraint: Constraint | EpisodeConstraint) -> str:
        return f"min({constraint.label}, tau)"
