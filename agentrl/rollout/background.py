"""Runs slow environments in threads while the policy is sampled for other episodes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from types import TracebackType
from typing import Any

AT_ONCE = 64  # number of threads; further work waits until a thread is free


class Background:
    """Runs work in a pool of AT_ONCE threads. The pool starts with the first piece of work.

    When the context closes or the process exits, work that is still running is abandoned: nothing waits for it.
    """

    def __init__(self) -> None:
        self.running = 0  # pieces of work whose results have not been taken yet
        self._threads: ThreadPool | None = None
        self._done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._threads is not None:
            self._threads.terminate()

    def start(self, number: int, work: Callable[[], Any]) -> None:
        """Start `work` in a thread. `take` returns its result together with `number`."""
        self._threads = self._threads or ThreadPool(AT_ONCE)
        self.running += 1
        self._threads.apply_async(
            work,
            callback=lambda result: self._done.put((number, result, None)),
            error_callback=lambda error: self._done.put((number, None, error)),
        )

    def ready(self) -> bool:
        """Return whether a result can be taken."""
        return not self._done.empty()

    def take(self, wait: bool) -> list[tuple[int, Any]]:
        """Return the finished results as (number, result) pairs, sorted by number.

        With `wait`, block until there is at least one, if work is running. Raises the error of work that failed.
        """
        taken: list[tuple[int, Any]] = []
        while self.running and (not self._done.empty() or (wait and not taken)):
            number, result, error = self._done.get()
            self.running -= 1
            if error is not None:
                raise error
            taken.append((number, result))
        return sorted(taken, key=lambda one: one[0])
