"""A batch of episodes that a thread plays while its caller does something else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from threading import Event, Thread

from agentrl.core.trajectory import Trajectory
from agentrl.rollout.sampler import Session

LOOK_S = 0.1  # between two looks at how many episodes have not ended
PATIENCE_S = 5.0  # for a tool that is running when the batch is given up

# Plays the batch in a session. Tells the second how many episodes have not ended, and stops where the third is true.
Play = Callable[[Session, Callable[[int], None], Callable[[], bool]], list[Trajectory]]


class GivenUp(Exception):
    """Nobody wants the batch any more."""


class Playing:
    """Opens a session, and plays in it in a thread.

    The session opens and closes in the thread of the caller, where processes may wait for each other.
    """

    def __init__(self, opening: AbstractContextManager[Session], play: Play) -> None:
        self._waiting: int | None = None  # until the thread has said it
        self._given_up = Event()
        self._result: Future[list[Trajectory]] = Future()
        self._closing = ExitStack()
        session = self._closing.enter_context(opening)
        self._thread = Thread(target=self._run, args=(session, play), name="rollouts", daemon=True)
        self._thread.start()

    def result(self, progress: Callable[[int], None]) -> list[Trajectory]:
        """Wait for the batch, and tell `progress` meanwhile how many episodes have not ended. Raises its error."""
        with self._closing:
            while self._thread.is_alive():
                if self._waiting is not None:
                    progress(self._waiting)
                self._thread.join(LOOK_S)
            return self._result.result()

    def give_up(self) -> None:
        """End the batch without a result. After `result` it does nothing."""
        self._given_up.set()
        self._thread.join(PATIENCE_S)
        self._closing.close()

    def _run(self, session: Session, play: Play) -> None:
        try:
            self._result.set_result(play(session, self._show, self._given_up.is_set))
        except BaseException as error:  # `result` raises it in the thread that waits for the batch
            self._result.set_exception(error)

    def _show(self, waiting: int) -> None:
        self._waiting = waiting
