"""What a live tracker is, and the guard that keeps its failures from the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer

from agentrl.core.errors import first_line


class Tracker:
    """Follows a run from its start to its end; this one follows nothing."""

    def attach(self, trainer: Trainer) -> None:
        """Listen to `trainer`; called before it trains, after the callbacks that write the run's files."""

    def close(self, state: str) -> None:
        """The run has ended as `state` (a status of status.json)."""


class Guard:
    """Calls that may fail without consequence: the first failure is told, and no further call is made."""

    def __init__(self, name: str, part: str = "") -> None:
        self._name, self._part, self._broken = name, part and f", {part}", False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises (network, disk, its own bugs): the run is worth more
            self._broken = True
            warn(f"tracker={self._name}{self._part} failed and is switched off, the run goes on: {first_line(error)}")

    @property
    def works(self) -> bool:
        return not self._broken


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"agentrl: warning: {message}", file=sys.stderr, flush=True)
