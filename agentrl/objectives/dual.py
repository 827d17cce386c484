"""Dual variables (multipliers) of a constrained objective: max_theta E[r_user] subject to E[r_k] >= tau_k for all k.

The Lagrangian is min_{lambda >= 0} max_theta E[r_user] + sum_k lambda_k (E[r_k] - tau_k). Each multiplier is updated
once per rollout batch from the smoothed batch mean of its reward (HIPO, arXiv 2603.16152, algorithm step 5). All state
is in buffers, so the state_dict saves and restores a multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from agentrl.objectives.choices import DualUpdate

LOG_FLOOR = 1e-6  # lowest value of kind 'log': a multiplicative update could never leave 0


class Multiplier(nn.Module):
    """lambda of one constraint, in [0, cap].

    With e the smoothed violation tau - EMA[r] and eta the learning rate, an update is

    sgd    lambda <- lambda + eta e                                                          (HIPO)
    adam   lambda <- lambda + eta m / (sqrt(v) + 1e-8), m and v the bias-corrected moments of e
    log    lambda <- lambda exp(eta e)
    pid    I <- I + eta e;  lambda <- I + k_p e + k_d max(0, EMA_before[r] - EMA[r])         (Stooke et al. 2020)
    fixed  no update

    Then lambda is projected onto [0, cap]. Kind 'pid' also projects I, so that I cannot grow without bound.
    """

    value: Tensor
    ema: Tensor
    integral: Tensor
    moments: Tensor
    updates: Tensor
    at_cap: Tensor
    satisfied: Tensor

    def __init__(
        self,
        kind: DualUpdate,
        threshold: float,
        initial: float,
        learning_rate: float,
        cap: float = math.inf,
        decay: float = 0.0,
        warmup: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        k_p: float = 0.0,
        k_d: float = 0.0,
    ) -> None:
        """Set lambda to `initial`. `threshold` is tau, and `decay`, in [0, 1), is the decay of the EMA.

        In the first `warmup` batches only the EMA is updated. Raises ValueError on an unknown kind.
        """
        super().__init__()
        if kind not in get_args(DualUpdate):
            raise ValueError(f"kind {kind!r} is not one of {', '.join(get_args(DualUpdate))}")
        self.kind, self.threshold, self.learning_rate, self.cap = kind, threshold, learning_rate, cap
        self.decay, self.warmup, self.betas, self.k_p, self.k_d = decay, warmup, betas, k_p, k_d
        start = max(initial, LOG_FLOOR) if kind == "log" else initial
        self.register_buffer("value", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("ema", torch.tensor(math.nan, dtype=torch.float64))  # NaN until the first measurement
        self.register_buffer("integral", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("updates", torch.tensor(0))  # number of batches measured
        self.register_buffer("at_cap", torch.tensor(0))  # batches in a row that ended at the cap
        self.register_buffer("satisfied", torch.tensor(0))  # batches in a row in which all alike met the threshold

    @torch.no_grad()
    def update(self, measured: float | None, alike: bool = False) -> None:
        """Update from the mean reward of one rollout batch. None (nothing was measured) changes nothing.

        `alike` says that all replies earned the same.
        """
        if measured is None or math.isnan(measured):
            return
        before = self.ema.clone()
        if self.updates == 0:
            before = torch.full_like(self.ema, measured)
        self.ema.copy_(self.decay * before + (1 - self.decay) * measured)
        self.updates += 1
        self.satisfied.copy_(
            self.satisfied + 1 if alike and measured >= self.threshold else torch.zeros_like(self.satisfied)
        )
        if self.updates <= self.warmup or self.kind == "fixed":
            return
        violation = self.threshold - self.ema
        self.value.copy_(self._step(violation, before).clamp(LOG_FLOOR if self.kind == "log" else 0.0, self.cap))
        self.at_cap.copy_(self.at_cap + 1 if self.value >= self.cap else torch.zeros_like(self.at_cap))

    def _step(self, violation: Tensor, before: Tensor) -> Tensor:
        """Return lambda after the step and before the projection."""
        if self.kind == "log":
            return self.value * torch.exp(self.learning_rate * violation)
        if self.kind == "adam":
            steps = int(self.updates) - self.warmup
            decay = torch.tensor(self.betas, dtype=torch.float64)
            self.moments.copy_(decay * self.moments + (1 - decay) * torch.stack([violation, violation**2]))
            mean, square = self.moments / (1 - decay**steps)
            return self.value + self.learning_rate * mean / (square.sqrt() + 1e-8)
        if self.kind == "pid":
            self.integral.add_(self.learning_rate * violation).clamp_(0.0, self.cap)
            return self.integral + self.k_p * violation + self.k_d * (before - self.ema).clamp(min=0.0)
        return self.value + self.learning_rate * violation


class DualVariables(nn.Module):
    """The multipliers of all constraints by name, in the order given."""

    def __init__(self, multipliers: Mapping[str, Multiplier]) -> None:
        super().__init__()
        self.names = list(multipliers)
        self.multipliers = nn.ModuleList(multipliers.values())

    def values(self) -> Tensor:
        """Return lambda of every constraint, shape (K,)."""
        return torch.stack([multiplier.value for multiplier in self]) if self.names else torch.zeros(0)

    def update(self, measured: Mapping[str, float | None], alike: Collection[str] = ()) -> None:
        """Update every multiplier from the mean rewards of one rollout batch.

        `alike` names the constraints of which all replies earned the same.
        """
        for name, multiplier in zip(self.names, self, strict=True):
            multiplier.update(measured[name], name in alike)

    def __iter__(self) -> Iterator[Multiplier]:
        return iter(self.multipliers)  # type: ignore[arg-type]
