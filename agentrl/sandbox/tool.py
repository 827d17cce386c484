"""The tool process: a fork of the worker. It executes calls, each in a fresh namespace, until the worker ends it.

This file protects nothing: tool code shares the process, and can break it together with the rest of its own episode.
The process is the boundary (`agentrl.sandbox.child`), and the next episode gets another one. A process of the same kind
compiles the sources and never executes them, so its output can be kept and used for every later call.
"""

from __future__ import annotations

import builtins
import contextvars
import datetime
import gc
import io
import json
import marshal
import math
import operator
import os
import random
import re
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

PRINT_CHARS = 1_000_000
OUT_OF_MEMORY = "out of memory"
LENGTH = struct.Struct("=I")


class PrintLimit(OSError):
    """Tool code printed more than PRINT_CHARS characters."""


class Capture(io.TextIOBase):
    """Standard output of one call. Keeps the first `keep` characters; raises PrintLimit beyond PRINT_CHARS."""

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


def evaluate(request: bytes, output_chars: int) -> tuple[bytes, bool]:
    """Run one request in this process. Returns the outcome as JSON, and whether later calls may see a change.


    A request is the length of the code (0 for none), the code from `agentrl.sandbox.compiler`, and a JSON object with
    `function`, `arguments` and, if there is no code, `source`. Errors of the tool code are part of the outcome.
    """
    reply: dict[str, Any] = {"truncated": False}
    meddles = True
    capture = Capture(output_chars)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = capture  # type: ignore[misc,assignment]

    def cut(text: str) -> str:
        if len(text) > output_chars:
            reply["truncated"] = True
            text = text[:output_chars]
        return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would break every later encoding

    try:
        (length,) = LENGTH.unpack_from(request)
        job = json.loads(request[LENGTH.size + length :])
        random.seed(0)  # every call of a process starts with the same state
        namespace: dict[str, Any] = {}
        if length:
            module, meddles = marshal.loads(memoryview(request)[LENGTH.size :][:length])
        else:
            module = compile(job["source"], "<tool>", "exec", dont_inherit=True)
        exec(module, namespace)
        value = namespace[job["function"]](**job["arguments"])
        reply["type"] = type(value).__name__
        reply["text"] = cut(str(value))
        try:
            reply["json"] = cut(json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            reply["json_error"] = cut(str(error))
    except MemoryError:
        reply["error"] = OUT_OF_MEMORY
    except BaseException as error:  # tool code may raise anything, even SystemExit
        try:
            reply["error"] = cut(str(error))
        except BaseException:
            reply["error"] = type(error).__name__
    reply["stdout"] = cut(capture.text())
    return json.dumps(reply).encode(), meddles


class Pristine:
    """Restores patched modules between calls, so that one tool does not break the next.


    It is used only after code that seems to patch something. A comparison touches every value, and the fork would copy
    every page of memory that it touches.
    """

    def __init__(self) -> None:
        loaded = (builtins, datetime, json, marshal, math, operator, random, re, time)
        self.contents = [(vars(module), dict(vars(module))) for module in loaded]
        self.modules, self.path, self.recursion = dict(sys.modules), list(sys.path), sys.getrecursionlimit()

    def restore(self) -> None:
        """Restore the contents of modules, the list of modules, the import path, environment and recursion limit."""
        for live, saved in [*self.contents, (sys.modules, self.modules)]:
            if live != saved:
                live.clear()
                live.update(saved)
        sys.path[:] = self.path
        os.environ.clear()
        sys.setrecursionlimit(self.recursion)


def serve(
    channel: int, answer: Callable[[bytes, int], tuple[bytes, bool]], output_chars: int, pristine: Pristine
) -> None:
    """Answer requests until the worker closes the channel, then end the process. Never returns."""
    status = 1
    try:
        while True:
            (length,) = LENGTH.unpack(_read(channel, LENGTH.size))
            request = _read(channel, length)
            payload, meddled = contextvars.Context().run(answer, request, output_chars)  # its own decimal precision
            view = memoryview(LENGTH.pack(len(payload)) + payload)
            while view:
                view = view[os.write(channel, view) :]
            if meddled:
                pristine.restore()
            gc.collect()  # a namespace and its functions refer to each other, and so keep all values of the call
    except EOFError:
        status = 0  # the worker has closed the channel
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
