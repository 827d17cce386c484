"""Plays a batch of episodes in a thread while the caller does something else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from threading import Event, Thread

from agentrl.core.trajectory import Trajectory
from agentrl.rollout.sampler import Session

LOOK_S = 0.1  # seconds between two checks of how many episodes have not ended
PATIENCE_S = 5.0  # seconds to wait for a running tool when the batch is given up

# A function that plays the batch: (session, progress, given_up). It calls `progress` with the number of episodes that
# have not ended, and raises GivenUp once `given_up` returns true.
Play = Callable[[Session, Callable[[int], None], Callable[[], bool]], list[Trajectory]]


class GivenUp(Exception):
    """The batch was cancelled: its result is not needed any more."""


class Playing:
    """Opens a session and runs `play` with it in a thread.

    The session is opened and closed in the caller's thread, since several processes may wait for each other there.
    """

    def __init__(self, opening: AbstractContextManager[Session], play: Play) -> None:
        self._waiting: int | None = None  # episodes that have not ended; None until the thread reports it
        self._given_up = Event()
        self._result: Future[list[Trajectory]] = Future()
        self._closing = ExitStack()
        session = self._closing.enter_context(opening)
        self._thread = Thread(target=self._run, args=(session, play), name="rollouts", daemon=True)
        self._thread.start()

    def result(self, progress: Callable[[int], None]) -> list[Trajectory]:
        """Wait for the batch and return its trajectories. Raises the error of the thread.

        Meanwhile `progress` is called again and again with the number of episodes that have not ended.
        """
        with self._closing:
            while self._thread.is_alive():
                if self._waiting is not None:
                    progress(self._waiting)
                self._thread.join(LOOK_S)
            return self._result.result()

    def give_up(self) -> None:
        """Cancel the batch and discard its result. It does nothing after `result`."""
        self._given_up.set()
        self._thread.join(PATIENCE_S)
        self._closing.close()

    def _run(self, session: Session, play: Play) -> None:
        try:
            self._result.set_result(play(session, self._show, self._given_up.is_set))
        except BaseException as error:  # `result` raises it in the caller's thread
            self._result.set_exception(error)

    def _show(self, waiting: int) -> None:
        self._waiting = waiting
