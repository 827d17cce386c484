"""How long a busy server is waited for, and a slow one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT = 0.5  # seconds after the first try, doubling
LONGEST_RETRY_AFTER = 300.0  # a server that asks for more is as good as down
BUSY = (408, 409, 425, 429)  # HTTP statuses that pass, and so does everything from 500 on


def passes(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in BUSY or status >= 500


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks to wait: a number or a date; 0 where there is none or it is neither."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # a date, perhaps
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises TimeoutError once `seconds` are over, whatever `call` is doing.

    A client's own timeouts begin anew with each byte, and looking up a name heeds none: a server or a proxy that sends
    a blank now and then would be waited for without end.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # handed on to whoever waits
            outcome.set_exception(error)

    threading.Thread(target=run, name="call", daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
