"""The worker: a warm interpreter without rights that forks one process for every call.

Started as a script with an empty environment. A supervisor waits for the zygote (process 1 of its own pid namespace),
so that either ending ends everything. Frames on the socket to the parent are a length and bytes; the zygote never
looks into a request, and a tool process reaches nothing but a pipe for its own result.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import io
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any


def _sibling(name: str) -> Any:
    """A module beside this file; the package itself is not importable here."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


limits = _sibling("limits")
WARM = (
    "_strptime", "base64", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal",
    "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "locale", "math", "operator",
    "random", "re", "statistics", "string", "textwrap", "time", "traceback", "typing", "unicodedata", "zoneinfo",
    "dateutil.parser", "dateutil.relativedelta", "pytz", "tzdata",
)  # fmt: skip
MAX_PROCESSES = 64  # of the user, where seccomp does not forbid them outright
PRINT_CHARS = 1_000_000


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
        reply["error"] = "out of memory"
    except BaseException as error:  # tool code may raise anything, SystemExit included
        try:
            reply["error"] = cut(str(error))
        except BaseException:
            reply["error"] = type(error).__name__
    reply["stdout"] = cut(capture.text())
    return json.dumps(reply).encode()


def run_tool(request: bytes, pipe: int, settings: dict[str, Any], restrict: Any) -> None:
    """The forked tool process, from its first instruction to its last."""
    status = 1
    try:
        seconds = int(settings["timeout_s"]) + 1
        limits.lower(resource.RLIMIT_CPU, seconds)
        restrict()
        random.seed(0)  # a fork seeds itself anew
        payload = evaluate(request, settings["output_chars"])
        view = memoryview(struct.pack("=I", len(payload)) + payload)
        while view:
            view = view[os.write(pipe, view) :]
        status = 0
    finally:
        os._exit(status)


class Zygote:
    """Answers requests one after the other."""

    def __init__(self, channel: socket.socket, settings: dict[str, Any], restrict: Any, namespaces: bool) -> None:
        self.channel, self.settings, self.restrict, self.namespaces = channel, settings, restrict, namespaces
        self.max_bytes = 64 * settings["output_chars"] + 65536  # four texts, at most 12 bytes a character

    def serve(self) -> None:
        while True:
            outcome, payload = self.call(receive(self.channel))
            send(self.channel, outcome.encode() + b"\n" + payload)

    def call(self, request: bytes) -> tuple[str, bytes]:
        """(what happened, the tool process's own reply): '' or the reason why there is none."""
        reader, writer = os.pipe()
        deadline = time.monotonic() + self.settings["timeout_s"]
        pid = os.fork()
        if pid == 0:
            self.channel.close()
            os.close(reader)
            run_tool(request, writer, self.settings, self.restrict)
        os.close(writer)
        status = None
        try:
            outcome, payload = self._read(reader, deadline)
            if outcome == "ended":  # let it become a zombie, so that its own status is what we report
                status = _reap(pid, min(deadline, time.monotonic() + 0.2))
                outcome = "ended without a result" + _reason(status)
        finally:
            os.close(reader)
            if self.restrict is unrestricted:
                _kill_group(pid)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if self.restrict is unrestricted and self.namespaces:
                _kill_all()  # alone in this pid namespace: nothing that the tool started survives it
        return outcome, payload

    def _read(self, reader: int, deadline: float) -> tuple[str, bytes]:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(self.channel.fileno(), select.POLLIN)
        data = bytearray()
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                return "timeout", b""
            if self.channel.fileno() in ready:  # the parent never speaks during a call: it is gone
                raise EOFError
            chunk = os.read(reader, 1 << 16)
            data += chunk
            if len(data) >= 4:
                (length,) = struct.unpack_from("=I", data)
                if length > self.max_bytes:
                    return "wrote no valid result", b""
                if len(data) >= 4 + length:
                    return "", bytes(data[4 : 4 + length])
            if not chunk:
                return "ended", b""


def _reap(pid: int, deadline: float) -> int | None:
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    return None


def _reason(status: int | None) -> str:
    if status is None:
        return ""
    code = os.waitstatus_to_exitcode(status)
    return f" (exit status {code})" if code >= 0 else f" (signal {-code})"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had no time to make a group, or no member is left
        os.killpg(pid, signal.SIGKILL)


def _kill_all() -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # nobody left, the ordinary case
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)


def receive(channel: socket.socket) -> bytes:
    """One frame; EOFError when the other end is gone."""
    (length,) = struct.unpack("=I", _exactly(channel, 4))
    return _exactly(channel, length)


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = channel.recv(min(length - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def send(channel: socket.socket, payload: bytes) -> None:
    """One frame."""
    channel.sendall(struct.pack("=I", len(payload)) + payload)


def isolate(settings: dict[str, Any], namespaces: str) -> tuple[list[str], Any]:
    """Give up every right that this machine lets us give up: (protections that are missing, per-call restriction)."""
    without, missing = set(settings["without"]), []
    readable, hidden = settings["readable"], settings["hidden"]
    rooted = False
    try:
        if not namespaces:
            raise OSError("no mount namespace")
        limits.new_root(readable, hidden)
        rooted = True
    except OSError:
        try:
            if "landlock" in without:
                raise
            limits.landlock(readable, hidden)
        except OSError:
            missing.append("files")
    importlib.invalidate_caches()
    if sys.platform == "linux":
        everyone_reads = bool(os.stat(os.__file__).st_mode & 0o004)
        limits.drop_privileges(change_user=rooted and namespaces == "root" and everyone_reads)
        limits.die_with_parent()  # after the change of user, which clears it
    try:
        if "seccomp" in without:
            raise OSError("left out")
        restrict = limits.seccomp_installer()
    except OSError:
        restrict = unrestricted
        if not namespaces:
            missing += ["network", "processes"]
    limits.rlimits(settings["memory_mb"])
    return missing, restrict


def unrestricted() -> None:
    """The per-call restriction of a machine without seccomp: few processes, and in one group."""
    os.setsid()
    limits.lower(resource.RLIMIT_NPROC, MAX_PROCESSES)


def supervise(zygote: int, parent: int) -> None:
    """Wait for the zygote; end with the parent. Polls, since a parent-death signal follows a thread of the parent."""
    while os.getppid() == parent:
        if os.waitpid(zygote, os.WNOHANG)[0]:
            os._exit(0)
        time.sleep(0.25)
    os.kill(zygote, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Start up, say hello (what is missing, or why there is no worker), serve until the parent is gone."""
    settings = json.loads(sys.argv[1])
    channel = socket.socket(fileno=settings["fd"])
    try:
        sys.argv[1:] = []
        os.environ.clear()
        sys.path.extend(settings["search"])
        for name in WARM:
            with contextlib.suppress(ImportError):  # the last few are optional: tool code gets the error itself
                importlib.import_module(name)
        parent = os.getppid()
        without = settings["without"]
        namespaces = "" if "namespaces" in without else limits.unshare_namespaces("root" not in without)
        zygote = os.fork()
        if zygote:
            channel.close()
            supervise(zygote, parent)
        missing, restrict = isolate(settings, namespaces)
        gc.collect()
        gc.freeze()
        send(channel, json.dumps({"missing": missing}).encode())
    except Exception as error:
        send(channel, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    try:
        Zygote(channel, settings, restrict, bool(namespaces)).serve()
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone


if __name__ == "__main__":
    main()
