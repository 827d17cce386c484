"""Decides how long to wait for a busy or a slow server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT = 0.5  # seconds to wait after the first try; doubles with each try
LONGEST_RETRY_AFTER = 300.0  # seconds; a server that asks to wait longer counts as failed
BUSY = (408, 409, 425, 429)  # HTTP statuses that may pass, like all from 500 on


def is_temporary(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in BUSY or status >= 500


def retry_after(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks to wait. 0 if it is missing, or neither a number nor a date."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # it may be a date
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or a date without a time zone
        return 0.0


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does. Raises TimeoutError after `seconds`, whatever `call` is doing.

    The timeouts of a client start again with each byte, and do not limit the look-up of a name. Without this limit, a
    server that sends a blank now and then could block forever.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # passed on to the waiting thread
            outcome.set_exception(error)

    threading.Thread(target=run, name="call", daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
