"""The worker: a warm interpreter without rights that forks one process for every episode.

Started as a script with an empty environment. A supervisor waits for the zygote (process 1 of its own pid namespace),
so that either ending ends everything. Frames on the socket to the parent are a length and bytes; the zygote never
looks into a request, and a tool process reaches nothing but a socket for its own requests and results. Between calls
it is stopped, threads and all. One more process compiles sources and executes none.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
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


compiler = _sibling("compiler")
limits = _sibling("limits")
tool = _sibling("tool")
# What benchmark tools import, almost all of them; every further module makes every fork dearer.
WARM = (
    "_strptime", "calendar", "collections", "copy", "csv", "datetime", "functools", "itertools", "json", "math",
    "operator", "random", "re", "string", "time", "typing",
)  # fmt: skip
MAX_PROCESSES = 64  # of the user, where seccomp does not forbid them outright
MAX_EPISODES = 8  # whose processes are kept; each may hold the memory limit
MAX_CALLS = 64  # of one process
EPISODE = struct.Struct("=Q")  # precedes a request
ONE_CALL, COMPILER = 0, 1  # episodes of a kind: a call with a process of its own, the process that only compiles
OWN_FD, MAX_FDS = 3, 64  # a tool process's socket, and what it may open


class Process:
    """A tool process as the zygote sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid, self.channel, self.calls, self.spent = pid, channel, 0, 0.0


class Zygote:
    """Answers requests one after the other."""

    def __init__(self, channel: socket.socket, settings: dict[str, Any], restrict: Any, namespaces: bool) -> None:
        self.channel, self.settings, self.restrict, self.namespaces = channel, settings, restrict, namespaces
        self.max_bytes = 64 * settings["output_chars"] + 65536  # four texts, at most 12 bytes a character
        self.pristine = tool.Pristine()
        self.kept: dict[int, Process] = {}  # by episode, the one used last at the end

    def serve(self) -> None:
        while True:
            frame = receive(self.channel)
            (episode,) = EPISODE.unpack_from(frame)
            outcome, payload = self.call(episode, frame[EPISODE.size :])
            send(self.channel, outcome.encode() + b"\n" + payload)

    def call(self, episode: int, request: bytes) -> tuple[str, bytes]:
        """(what happened, the tool process's own reply): '' or the reason why there is none."""
        start = time.monotonic()
        deadline = start + self.settings["timeout_s"]
        process = self.process(episode)
        outcome, payload = "the worker failed", b""
        try:
            os.kill(process.pid, signal.SIGCONT)
            outcome, payload = self._exchange(process, tool.LENGTH.pack(len(request)) + request, deadline)
        finally:
            process.calls += 1
            process.spent += time.monotonic() - start
            # a process that used its time up, or could have left others behind, is not worth keeping
            used_up = process.calls >= MAX_CALLS or process.spent > self.settings["timeout_s"] / 2
            if outcome or episode == ONE_CALL or used_up or self.restrict is unrestricted:
                status = self.end(process, deadline if outcome == "ended" else 0)
                if outcome == "ended":
                    outcome = "ended without a result" + _reason(status)
            else:
                os.kill(process.pid, signal.SIGSTOP)
                self.kept[episode] = process
                if len(self.kept) > MAX_EPISODES:
                    self.end(self.kept.pop(next(iter(self.kept))))
        return outcome, payload

    def process(self, episode: int) -> Process:
        """The episode's process, or a new one if it has none, or one that died or spoke out of turn."""
        process = self.kept.pop(episode, None)
        if process is not None and select.select([process.channel], [], [], 0)[0]:
            self.end(process)
            process = None
        return process or self.fork(compiler.answer if episode == COMPILER else tool.evaluate)

    def fork(self, answer: Any) -> Process:
        """A process that answers requests, restricted before it sees any."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(theirs.fileno(), OWN_FD)
                os.closerange(OWN_FD + 1, MAX_FDS)
                limits.die_with_parent()
                limits.lower(resource.RLIMIT_CPU, 2 * int(self.settings["timeout_s"]) + 2)
                self.restrict()
                tool.serve(OWN_FD, answer, self.settings["output_chars"], self.pristine)
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        return Process(pid, ours)

    def end(self, process: Process, patience: float = 0) -> int | None:
        """End a process, and its status if it ended by itself within its patience."""
        # let it become a zombie, so that its own status is what we report
        status = _reap(process.pid, min(patience, time.monotonic() + 0.2)) if patience else None
        process.channel.close()
        if self.restrict is unrestricted:
            _kill_group(process.pid)
        if status is None:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
        if self.restrict is unrestricted and self.namespaces:
            _kill_all()  # alone in this pid namespace: nothing that the tool started survives it
        return status

    def _exchange(self, process: Process, request: bytes, deadline: float) -> tuple[str, bytes]:
        """Send the request and receive the reply, while watching the clock and the parent."""
        poll = select.poll()
        poll.register(process.channel.fileno(), select.POLLIN | select.POLLOUT)
        poll.register(self.channel.fileno(), select.POLLIN)
        unsent, data = memoryview(request), bytearray()
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                return "timeout", b""
            if self.channel.fileno() in ready:  # the parent never speaks during a call: it is gone
                raise EOFError
            try:
                if ready[process.channel.fileno()] & select.POLLIN or not unsent:
                    chunk = process.channel.recv(1 << 16)
                    if not chunk:
                        return "ended", b""
                    data += chunk
                else:
                    unsent = unsent[process.channel.send(unsent) :]
                    if not unsent:
                        poll.modify(process.channel.fileno(), select.POLLIN)
            except BlockingIOError:
                continue
            except ConnectionError:
                return "ended", b""
            if len(data) >= tool.LENGTH.size:
                (length,) = tool.LENGTH.unpack_from(data)
                if length > self.max_bytes or len(data) > tool.LENGTH.size + length:
                    return "wrote no valid result", b""
                if len(data) == tool.LENGTH.size + length:
                    return "", bytes(data[tool.LENGTH.size :])


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
    (length,) = tool.LENGTH.unpack(_exactly(channel, tool.LENGTH.size))
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
    channel.sendall(tool.LENGTH.pack(len(payload)) + payload)


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
