"""Standard output and error that cannot end a run: what nobody can read any more is dropped, and the work goes on.

The reader of a pipe may leave (`agentrl | head`), a terminal may hang up, a disk may be full, an encoding may lack a
letter.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO, cast

GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # nobody reads there any more, which is no fault
PLAIN = {"±": "+-", "→": "->", "←": "<-", "×": "x", "·": ".", "–": "-", "—": "-", "−": "-", "│": "|", "─": "-"}


class LastingStream:
    """A text stream that writes to another for as long as that can be written to; in all else it is the other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None  # why the rest was dropped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="agentrl.plain")

    def write(self, text: str) -> int:
        """All of `text`, or nothing any more."""
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
        """From here on to nowhere, what Python still holds in its buffers and what C code writes included."""
        self.lost = self.lost or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def keep_streams() -> None:
    """Make standard output and error of this process last. Calling it again changes nothing."""
    for descriptor in (0, 1, 2):  # one that was closed (`>&-`) would be given to the next file opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good)
        if not hasattr(stream, "lost"):
            setattr(sys, name, wrap_stream(stream))


def wrap_stream(stream: TextIO) -> TextIO:
    """`stream` as one that cannot fail any more."""
    return cast(TextIO, LastingStream(stream))


def lost_output() -> str | None:
    """Why not all of standard output was delivered; None where it was, or where its reader left of his own will."""
    sys.stdout.flush()
    error: OSError | None = getattr(sys.stdout, "lost", None)
    return None if error is None or error.errno in GONE else error.strerror


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """For what an encoding lacks: the same without accents, arrows of two signs, else question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for letter in error.object[error.start : error.end]:
        plain = PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode("ascii")
        text += plain or "?"
    return text, error.end


codecs.register_error("agentrl.plain", _plain)
