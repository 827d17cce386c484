"""The parent's side: a pool of workers. A worker starts when it is first needed, and is replaced when it is lost.

    with Sandbox(workers=2) as sandbox:
        task = sandbox.episode()
        result = task.call("def add(a, b): return a + b", "add", {"a": 1, "b": 2})
        result.json  # '3'

Faulty code costs one call at most: the result has an error, and the next call works.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import queue
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.sandbox import child, compiler, tool

PACKAGES = ("dateutil", "pytz", "six", "tzdata")  # packages that tool code may import besides the standard library
GRACE_S = 5.0  # a worker that does not answer this long after the time limit counts as lost
START_S = 60.0  # time for a worker to start: an interpreter and thirty imports on a busy machine
_WITHOUT: tuple[str, ...] = ()  # mechanisms that tests leave out: namespaces, landlock, seccomp
_MEANING = {
    "files": "tool code can read and write your files (needs user namespaces or Landlock)",
    "network": "tool code can reach the network (needs user namespaces or seccomp)",
    "processes": "tool code can start processes (needs user namespaces or seccomp)",
}
INVALID = "the tool wrote no valid result"
SPOILT = (tool.OUT_OF_MEMORY, INVALID)  # errors after which a process is not used again
CODE_BYTES = 1 << 26  # size of the cache of compiled code; the thousands of tools of a benchmark fill a third of it
_warned: set[tuple[str, ...]] = set()
_episodes = itertools.count(child.COMPILER + 1)


class IsolationWarning(UserWarning):
    """The kernel offers less isolation than the sandbox needs."""


@dataclass(frozen=True)
class Result:
    """The outcome of one call. A bench makes the observation from `json`, `text` and `type` by its own rule.


    `error` is the text of the exception (maybe empty) or the sandbox's reason. None means that the call returned.
    """

    json: str | None = None  # json.dumps(value, ensure_ascii=False), None if the value is not serialisable
    json_error: str | None = None  # why it is not serialisable
    text: str = ""  # str(value)
    type: str = ""  # name of the value's type
    stdout: str = ""
    error: str | None = None
    timed_out: bool = False
    truncated: bool = False  # one of the texts above was cut to `output_chars`

    @property
    def value(self) -> Any:
        """The value after a round trip through JSON. Raises ValueError if it is not serialisable, or was cut."""
        if self.json is None:
            raise ValueError(self.json_error or self.error or "no value")
        return json.loads(self.json)


class _Lost(Exception):
    """The worker died or stopped answering."""


class _Worker:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            arguments = json.dumps({**settings, "fd": theirs.fileno()})
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", child.__file__, arguments],
                # Not -I, which ignores PYTHONHASHSEED. The loader may need LD_LIBRARY_PATH. The child drops both.
                env={"PYTHONHASHSEED": "0"}
                | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the parent
            )
        try:
            self._channel.settimeout(START_S)
            hello = json.loads(child.receive(self._channel))
        except (EOFError, OSError) as error:
            self.close()
            raise UserError(f"the sandbox worker did not start with {sys.executable}: {error!r}") from error
        if "error" in hello:
            self.close()
            raise UserError(f"the sandbox worker did not start: {hello['error']}")
        self.missing = tuple(hello["missing"])
        self._channel.settimeout(settings["timeout_s"] + GRACE_S)

    def call(self, episode: int, request: bytes) -> tuple[str, bytes]:
        try:
            child.send(self._channel, child.EPISODE.pack(episode) + request)
            outcome, _, payload = child.receive(self._channel).partition(b"\n")
        except (EOFError, OSError, struct.error) as error:
            raise _Lost from error
        return outcome.decode(), payload

    def close(self) -> None:
        self._channel.close()
        self._process.kill()  # the zygote and the tool process die with the supervisor
        self._process.wait()


class Sandbox:
    """Runs tool code. Safe to share between threads; `workers` calls run at once."""

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 10.0,
        memory_mb: int = 512,
        output_chars: int = 100_000,
        strict: bool = False,
    ) -> None:
        if workers < 1 or timeout_s <= 0 or memory_mb < 64 or output_chars < 1:
            raise UserError(
                f"sandbox: workers={workers}, timeout_s={timeout_s}, memory_mb={memory_mb} and "
                f"output_chars={output_chars} must be at least 1, above 0, at least 64 and at least 1"
            )
        self.workers, self.timeout_s, self.strict = workers, timeout_s, strict
        self._settings = {"timeout_s": timeout_s, "memory_mb": memory_mb, "output_chars": output_chars}
        self._lock = threading.Lock()
        self._code: dict[str, bytes] = {}  # source -> code, in the order of use; this process never reads the code
        self._code_bytes = 0
        self._simple = next(_episodes)  # the episode shared by the simple code of all tasks
        self._reset()
        if strict:
            self.missing()  # raises before any other work

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers after the calls in progress. A later call raises RuntimeError."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        for _ in range(self.workers):
            worker = self._slots.get()
            if worker is not None:
                worker.close()

    def missing(self) -> tuple[str, ...]:
        """Return the protections that this machine does not offer, of: files, network, processes."""
        slot = self._take()
        try:
            slot = slot or self._start()
            return slot.missing
        finally:
            self._slots.put(slot)

    def episode(self) -> Episode:
        """Start a series of calls that may share a process. No other series uses that process."""
        return Episode(self)

    def call(self, source: str, function: str, arguments: Any, episode: int = child.ONE_CALL) -> Result:
        """Execute `source` in a fresh namespace and call `function(**arguments)` there.

        `episode` is the number of the calling `Episode`. Without it the call gets a new process, unless the source is
        simple. Raises RuntimeError if the sandbox is closed, and UserError if no worker can start.
        """
        try:
            job = json.dumps({"function": function, "arguments": arguments}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return Result(error=f"arguments are not JSON: {error}")
        if len(job) + len(source) >= 1 << 28:
            return Result(error="arguments are too large")
        slot = self._take()
        try:
            slot = slot or self._start()
            outcome, code = self._compile(source, slot)
            simple, code = code[:1] == compiler.SIMPLE, code[1:]
            if outcome != "timeout":
                if not code:  # the source does not compile; the tool process says why
                    job = json.dumps({"source": source, "function": function, "arguments": arguments}).encode()
                number = self._simple if simple else episode
                outcome, payload = slot.call(number, tool.LENGTH.pack(len(code)) + code + job)
        except _Lost:
            assert slot is not None
            slot.close()
            slot = None
            return Result(error="the sandbox worker was lost")
        except BaseException:  # after Ctrl-C, the next call would receive the answer to this one
            if slot is not None:
                slot.close()
                slot = None
            raise
        finally:
            self._slots.put(slot)
        if outcome == "timeout":
            return Result(error=f"timed out after {self.timeout_s:g} s", timed_out=True)
        result = Result(error=f"the tool {outcome}") if outcome else _parse(payload)
        if simple and result.error in SPOILT:
            self._simple = next(_episodes)
        return result

    def _compile(self, source: str, worker: _Worker) -> tuple[str, bytes]:
        """Compile a source at its first call, in a process that never runs code. Returns (why there is none, code)."""
        with self._lock:
            code = self._code.pop(source, None)
            if code is not None:
                self._code[source] = code
                return "", code
        outcome, code = worker.call(child.COMPILER, json.dumps(source).encode())
        if outcome:
            return outcome, b""
        with self._lock:
            self._code_bytes += len(code) - len(self._code.pop(source, b""))
            self._code[source] = code
            while self._code_bytes > CODE_BYTES:
                self._code_bytes -= len(self._code.pop(next(iter(self._code))))
        return "", code

    def _take(self) -> _Worker | None:
        with self._lock:
            if self._pid != os.getpid():  # this is a fork: it must not use its parent's sockets
                self._reset()
        if self._closed:
            raise RuntimeError("the sandbox is closed")
        return self._slots.get()

    def _start(self) -> _Worker:
        worker = _Worker(self._settings | _visible_files() | {"without": list(_WITHOUT)})
        if not worker.missing:
            return worker
        lacks = "; ".join(_MEANING[name] for name in worker.missing)
        if self.strict:
            worker.close()
            raise UserError(f"sandbox=strict: {lacks}; allow this process to use them, or set sandbox=auto to go on")
        if worker.missing not in _warned:
            _warned.add(worker.missing)
            warnings.warn(f"THE SANDBOX IS INCOMPLETE ON THIS MACHINE: {lacks}", IsolationWarning, stacklevel=4)
        return worker


class Episode:
    """The calls of one task. They share a process, which saves a fork per call. Each call has a fresh namespace.


    Simple code (`agentrl.sandbox.compiler`) runs in a process that all episodes share, since it leaves nothing behind.
    Between calls the process is stopped. It is replaced after a timeout, an exit or a lack of memory, and when many
    episodes run at once. Calls do not depend on this.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self._number = sandbox, next(_episodes)

    def call(self, source: str, function: str, arguments: Any) -> Result:
        """Execute and call as `Sandbox.call` does."""
        result = self._sandbox.call(source, function, arguments, self._number)
        if result.error in SPOILT:
            self._number = next(_episodes)
        return result


def _visible_files() -> dict[str, list[str]]:
    """List the files that tool code may read: the standard library, a few packages, time zones."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    readable, search = [library], set()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        path = origin.parent if origin.name == "__init__.py" else origin
        readable.append(str(path))
        search.add(str(path.parent))
    if os.path.isdir("/usr/share/zoneinfo"):
        readable.append("/usr/share/zoneinfo")
    hidden = [f"{library}/site-packages", f"{library}/dist-packages"]
    return {"readable": readable, "search": sorted(search), "hidden": hidden}


def _parse(payload: bytes) -> Result:
    """Read a reply of the tool process. Tool code may have written it, so wrong types make it an invalid result."""
    try:
        reply = json.loads(payload)
        texts = {name: reply.get(name, "") for name in ("text", "type", "stdout")}
        texts |= {name: reply.get(name) for name in ("json", "json_error", "error")}
        truncated = reply["truncated"]
        if not isinstance(truncated, bool) or not all(isinstance(v, str | None) for v in texts.values()):
            raise TypeError
        if any(texts[name] is None for name in ("text", "type", "stdout")):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Result(error=INVALID)
    return Result(**texts, truncated=truncated)
