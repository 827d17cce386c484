"""Values of an update, collected over its pieces and logged once, so that cutting it otherwise logs the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StepLog:
    """What the pieces of a mini-batch add up to. All processes must add the same names in the same order."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # parts of a loss
        self._means: dict[str, Tensor] = {}  # sum and number of tokens
        self._extremes: dict[str, tuple[list[Tensor], Callable[[Tensor], Tensor]]] = {}
        self._constants: dict[str, float] = {}

    def constant(self, name: str, value: float) -> None:
        """Log what no piece changes."""
        self._constants[name] = value

    def add(self, name: str, value: Tensor) -> None:
        """Add a piece's share; logged is the sum, as the mean over processes."""
        self._sums[name] = self._sums.get(name, 0) + value.detach().float()

    def add_means(self, values: dict[str, Tensor], mask: Tensor | None = None) -> None:
        """Log the mean over pieces and processes of values where `mask` (of their shape) is on; nothing without any.

        None takes all values.
        """
        for name, value in values.items():
            kept = torch.ones_like(value) if mask is None else mask
            total, count = value.detach().float().masked_fill(kept == 0, 0).sum(), kept.sum().float()
            self._means[name] = self._means.get(name, 0) + torch.stack([total, count])

    def add_extreme(self, name: str, rows: Tensor, extreme: Callable[[Tensor], Tensor]) -> None:
        """Log the `extreme` of a value of each row (B,)."""
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
            log[name].append(extreme(accelerator.gather(torch.cat(rows))).item())
