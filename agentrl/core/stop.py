"""Lets the processes of a run agree on whether to stop: one was asked to, or one met a fault that must stop all."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce


class StopRequest:
    """Set by a signal handler, read between updates and between batches of an evaluation."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def is_requested(self) -> bool:
        """Whether any process was asked to stop. All processes must call this at the same point."""
        return any_process(self.signal is not None)


def any_process(here: bool) -> bool:
    """Whether `here` is true in any process. All processes must call this together."""
    state = PartialState()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor([float(here)], device=state.device), reduction="sum").item())
