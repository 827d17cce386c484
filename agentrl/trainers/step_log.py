"""Collects the values of an update over its pieces and logs them once, so that the cut does not change the log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StepLog:
    """Combines the values of the pieces of a mini-batch. All processes must add the same names in the same order."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # parts of a loss, summed over the pieces
        self._means: dict[str, Tensor] = {}  # (2,): sum and number of the values
        self._extremes: dict[str, tuple[list[Tensor], Callable[[Tensor], Tensor]]] = {}
        self._constants: dict[str, float] = {}

    def constant(self, name: str, value: float) -> None:
        """Log a value that is the same for all pieces."""
        self._constants[name] = value

    def add(self, name: str, value: Tensor) -> None:
        """Add a piece's share. The sum over the pieces is logged, as the mean over processes."""
        self._sums[name] = self._sums.get(name, 0) + value.detach().float()

    def add_means(self, values: dict[str, Tensor], mask: Tensor | None = None) -> None:
        """Log the mean, over pieces and processes, of the values where `mask` (of the same shape) is on.

        A mask of None takes all values. If there is no value at all, nothing is logged.
        """
        for name, value in values.items():
            kept = torch.ones_like(value) if mask is None else mask
            total, count = value.detach().float().masked_fill(kept == 0, 0).sum(), kept.sum().float()
            self._means[name] = self._means.get(name, 0) + torch.stack([total, count])

    def add_extreme(self, name: str, rows: Tensor, extreme: Callable[[Tensor], Tensor]) -> None:
        """Log the `extreme` (such as nanmax) over a value of each row (B,), over all pieces and processes."""
        self._extremes.setdefault(name, ([], extreme))[0].append(rows.detach())

    def write(self, accelerator: Any, log: Any) -> None:
        """Append every value to its list in `log`, which TRL averages into the next line."""
        for name, value in self._constants.items():
            log[name].append(value)
        for name, total in self._sums.items():
            log[name].append(accelerator.gather(total).nanmean().item())
        if self._means:
            pairs = accelerator.reduce(torch.stack(list(self._means.values())), reduction="sum").tolist()
            for name, (total, count) in zip(self._means, pairs, strict=True):
                if count > 0:
                    log[name].append(total / count)
        for name, (rows, extreme) in self._extremes.items():
            value = extreme(accelerator.gather(torch.cat(rows))).item()
            if not math.isnan(value):  # NaN if no row has a value
                log[name].append(value)
