"""Lets the processes of a run agree on whether to stop: one was asked to, or one met a fault that must stop all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

from agentrl.core.errors import UserError

Result = TypeVar("Result")


class CommonError(UserError):
    """A mistake that the user can mend. Every process of the run raises it, at the same point."""


class Interrupted(Exception):
    """A signal asked the run to stop; it stopped between two batches of episodes."""


class StopRequest:
    """Set by a signal handler, read between updates and between batches of an evaluation."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def is_requested(self) -> bool:
        """Whether any process was asked to stop. All processes must call this at the same point."""
        return any_process(self.signal is not None)


def leave_if_asked(stop: StopRequest) -> None:
    """Raise Interrupted if any process was asked to stop. All processes must call this at the same point."""
    if stop.is_requested():
        raise Interrupted


def any_process(here: bool) -> bool:
    """Whether `here` is true in any process. All processes must call this together."""
    state = PartialState()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor([float(here)], device=state.device), reduction="sum").item())


def most_of_processes(count: int) -> int:
    """The largest `count` of all processes. All processes must call this together."""
    if PartialState().num_processes == 1:
        return count
    return max(gather_object([count]))


def together(work: Callable[[], Result]) -> Result:
    """Do `work` in every process. All processes must call this together, and `work` must not wait for other processes.

    Raises:
        CommonError: `work` raised UserError in a process. Every process raises it, with the text of the first one.
    """
    failure: UserError | None = None
    try:
        result = work()
    except UserError as error:
        failure = error
    if any_process(failure is not None):
        texts: list[str] = gather_object([] if failure is None else [str(failure)])
        raise CommonError(texts[0]) from failure
    return result
