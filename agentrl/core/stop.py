"""What the processes of a run agree on: whether one of them was asked to stop, or met what must stop all."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce


class StopRequest:
    """Set by a signal handler, read between updates and between batches of an evaluation."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def anywhere(self) -> bool:
        """Whether any process was asked to stop; every process must ask at the same point, so that all agree."""
        return anywhere(self.signal is not None)


def anywhere(here: bool) -> bool:
    """Whether something holds in any process; all must ask together."""
    state = PartialState()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor([float(here)], device=state.device), reduction="sum").item())
