"""The tool process: a fork of the warm worker that executes calls, each in a fresh namespace, until it is ended.

Nothing here is a boundary: tool code shares this process and can break it, and with it the rest of its own episode.
The boundary is the process itself (`agentrl.sandbox.child`); the next episode gets another one.
"""

from __future__ import annotations

import builtins
import contextvars
import datetime
import io
import json
import math
import operator
import os
import random
import re
import struct
import sys
import time
from typing import Any

PRINT_CHARS = 1_000_000
OUT_OF_MEMORY = "out of memory"


class PrintLimit(OSError):
    """Tool code printed more than it may."""


class Capture(io.TextIOBase):
    """Standard output of one call: kept up to a length, refused beyond a larger one."""

    def __init__(self, keep: int) -> None:
        self.keep, self.parts, self.kept, self.seen = keep, [""], 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.seen += len(text)
        if self.kept < self.keep:
            self.parts.append(text[: self.keep - self.kept])
            self.kept += len(self.parts[-1])
        if self.seen > PRINT_CHARS:
            raise PrintLimit(f"printed more than {PRINT_CHARS} characters")
        return len(text)

    def text(self) -> str:
        return "".join(self.parts)


def evaluate(request: bytes, output_chars: int) -> bytes:
    """Run one request in this process and describe the outcome as JSON. Never raises for what tool code does."""
    reply: dict[str, Any] = {"truncated": False}
    capture = Capture(output_chars)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = capture  # type: ignore[misc,assignment]

    def cut(text: str) -> str:
        if len(text) > output_chars:
            reply["truncated"] = True
            text = text[:output_chars]
        return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would break every later encoding

    try:
        job = json.loads(request)
        random.seed(0)  # every call alike, the first of a process and the last
        namespace: dict[str, Any] = {}
        exec(compile(job["source"], "<tool>", "exec"), namespace)
        value = namespace[job["function"]](**job["arguments"])
        reply["type"] = type(value).__name__
        reply["text"] = cut(str(value))
        try:
            reply["json"] = cut(json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            reply["json_error"] = cut(str(error))
    except MemoryError:
        reply["error"] = OUT_OF_MEMORY
    except BaseException as error:  # tool code may raise anything, SystemExit included
        try:
            reply["error"] = cut(str(error))
        except BaseException:
            reply["error"] = type(error).__name__
    reply["stdout"] = cut(capture.text())
    return json.dumps(reply).encode()


class Pristine:
    """Modules as they were, put back between calls: what one tool patches, the next need not stumble over.

    Only after code that looks as if it changed any: comparing touches every value, and a fork pays for each page.
    """

    MEDDLES = re.compile(rb"builtins|sys\W|setattr|__\w+__|globals|vars|eval|exec|\w\.\w+ ?=[^=]")

    def __init__(self) -> None:
        loaded = (builtins, datetime, json, math, operator, random, re, time)
        self.contents = [(vars(module), dict(vars(module))) for module in loaded]
        self.modules, self.path, self.recursion = dict(sys.modules), list(sys.path), sys.getrecursionlimit()

    def restore(self) -> None:
        """Put back module contents, the list of modules, the import path, environment and recursion limit."""
        for live, saved in [*self.contents, (sys.modules, self.modules)]:
            if live != saved:
                live.clear()
                live.update(saved)
        sys.path[:] = self.path
        os.environ.clear()
        sys.setrecursionlimit(self.recursion)


def serve_calls(channel: int, output_chars: int, pristine: Pristine) -> None:
    """The life of the process: frames with requests in, frames with outcomes out. Does not return."""
    status = 1
    try:
        while True:
            (length,) = struct.unpack("=I", _read(channel, 4))
            request = _read(channel, length)
            payload = contextvars.Context().run(evaluate, request, output_chars)  # decimal's precision is its own
            view = memoryview(struct.pack("=I", len(payload)) + payload)
            while view:
                view = view[os.write(channel, view) :]
            if pristine.MEDDLES.search(request):
                pristine.restore()
    except EOFError:
        status = 0  # the worker needs it no more
    finally:
        os._exit(status)


def _read(channel: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = os.read(channel, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
