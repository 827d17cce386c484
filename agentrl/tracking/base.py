"""Define what a live tracker is, and a guard that keeps its failures away from the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer

from agentrl.core.errors import first_line


class Tracker:
    """Follows a run from start to end. This base class does nothing."""

    def attach(self, trainer: Trainer) -> None:
        """Listen to `trainer`. This is called before training, after the callbacks that write the run's files."""

    def close(self, state: str) -> None:
        """End the tracking; `state` is the run's final status (as in status.json)."""


class Guard:
    """Runs calls that may fail without harm to the run: the first failure is reported, and no further call is made."""

    def __init__(self, name: str, part: str = "") -> None:
        self._name, self._part, self._broken = name, part and f", {part}", False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        # a tracker may raise anything (network, disk, its own bugs), and must not stop the run
        except Exception as error:
            self._broken = True
            warn(f"tracker={self._name}{self._part} failed and is switched off, the run goes on: {first_line(error)}")

    @property
    def works(self) -> bool:
        return not self._broken


def warn(message: str) -> None:
    """Print a warning as one line on standard error."""
    print(f"agentrl: warning: {message}", file=sys.stderr, flush=True)
