"""Keeps a run going when standard output or error fails: text that cannot be written is dropped.

Writing fails when the reader of a pipe leaves (`agentrl | head`), a terminal hangs up, a disk is full, or an encoding
lacks a letter.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO, cast

GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # the reader has left; this is not a fault
PLAIN = {"±": "+-", "→": "->", "←": "<-", "×": "x", "·": ".", "–": "-", "—": "-", "−": "-", "│": "|", "─": "-"}


class LastingStream:
    """Wraps a text stream, and drops what is written after the stream has failed. All else passes through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None  # the error after which text was dropped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="agentrl.plain")

    def write(self, text: str) -> int:
        """Write `text`, or drop it if the stream has failed."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        """Send everything to /dev/null from now on, including Python's buffers and what C code writes."""
        self.lost = self.lost or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def keep_streams() -> None:
    """Wrap standard output and error of this process in `LastingStream`. A second call changes nothing."""
    for descriptor in (0, 1, 2):  # the next file opened would get the number of a closed descriptor (`>&-`)
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays open)
        if not hasattr(stream, "lost"):
            setattr(sys, name, wrap_stream(stream))


def wrap_stream(stream: TextIO) -> TextIO:
    """Return `stream` wrapped so that writing to it cannot fail."""
    return cast(TextIO, LastingStream(stream))


def lost_output() -> str | None:
    """Say why part of standard output was lost. None if nothing was lost, or if the reader of the pipe left."""
    sys.stdout.flush()
    error: OSError | None = getattr(sys.stdout, "lost", None)
    return None if error is None or error.errno in GONE else error.strerror


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace letters that an encoding lacks: without accents, arrows as "->", otherwise a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for letter in error.object[error.start : error.end]:
        plain = PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode("ascii")
        text += plain or "?"
    return text, error.end


codecs.register_error("agentrl.plain", _plain)
