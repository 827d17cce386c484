"""Does something listen at an address? Each look takes seconds at most."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from agentrl.endpoint.waiting import call_within

PATIENCE_S = 3.0  # for looking up a name and opening a connection
PORTS = {"http": 80, "https": 443}


def is_reachable(address: str) -> bool:
    """Check whether something listens at the host and port of an address, or a proxy stands in between."""
    return explain_no_connection(address) is None


def explain_no_connection(address: str) -> str | None:
    """Return why no connection opens to an address in time; None if one opens or a proxy stands in between."""
    parts = urlsplit(address)
    if behind_proxy(address):
        return None
    try:
        port = parts.port or PORTS.get(parts.scheme, 80)
    except ValueError:
        return "the port is not a number"
    return _answer_within(PATIENCE_S, lambda: _connect(parts.hostname or "", port))


def behind_proxy(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


def _connect(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _answer_within(seconds: float, question: Callable[[], str | None]) -> str | None:
    """Return what `question` returns, or that it took too long; a thread asks, because name look-ups have no
    timeout.
    """
    try:
        return call_within(seconds, question)
    except TimeoutError:
        return f"no answer in {seconds:g} s"
