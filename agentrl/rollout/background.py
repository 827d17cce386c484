"""Runs slow environments in threads while the policy is sampled for other episodes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from types import TracebackType
from typing import Any

AT_ONCE = 64  # threads; work beyond that waits for a free one


class Background:
    """Runs work in threads, at most AT_ONCE at a time, which exist once there is work.

    Neither its end nor that of the process waits for work that is still running.
    """

    def __init__(self) -> None:
        self.running = 0  # works that have not been taken yet
        self._threads: ThreadPool | None = None
        self._done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._threads is not None:
            self._threads.terminate()

    def start(self, number: int, work: Callable[[], Any]) -> None:
        """Begin some work; `take` gives its result under `number`."""
        self._threads = self._threads or ThreadPool(AT_ONCE)
        self.running += 1
        self._threads.apply_async(
            work,
            callback=lambda result: self._done.put((number, result, None)),
            error_callback=lambda error: self._done.put((number, None, error)),
        )

    def ready(self) -> bool:
        """Whether a result is there."""
        return not self._done.empty()

    def take(self, wait: bool) -> list[tuple[int, Any]]:
        """The results that are there, by number; with `wait` at least one while work is running. Raises its error."""
        taken: list[tuple[int, Any]] = []
        while self.running and (not self._done.empty() or (wait and not taken)):
            number, result, error = self._done.get()
            self.running -= 1
            if error is not None:
                raise error
            taken.append((number, result))
        return sorted(taken, key=lambda one: one[0])
