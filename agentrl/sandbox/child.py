"""The worker: a Python interpreter without rights that forks one process for every episode.

The worker starts as a script with an empty environment. It has three kinds of processes:

- The zygote is the interpreter that forks. It is process 1 of its own pid namespace. It passes requests on and never
  reads them.
- The supervisor waits for the zygote. If one of the two ends, so does everything else.
- A tool process runs the code. It can reach only one socket, for its own requests and results. Between calls it is
  stopped, including its threads. One more process of this kind compiles sources and never executes them.

A frame on the socket to the parent is a length followed by bytes.
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
    """Load a module beside this file. The package itself cannot be imported here."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compiler = _sibling("compiler")
limits = _sibling("limits")
tool = _sibling("tool")
# Modules that most benchmark tools import. Each further module makes every fork slower.
WARM = (
    "_strptime", "calendar", "collections", "copy", "csv", "datetime", "functools", "itertools", "json", "math",
    "operator", "random", "re", "string", "time", "typing",
)  # fmt: skip
MAX_PROCESSES = 64  # processes of the user, on machines where seccomp cannot forbid new ones
MAX_EPISODES = 8  # episodes whose processes are kept; each process may use memory up to the limit
MAX_CALLS = 64  # calls of one process
EPISODE = struct.Struct("=Q")  # the number of the episode, in front of a request
ONE_CALL, COMPILER = 0, 1  # reserved numbers: a call with its own process, and the process that compiles
OWN_FD, MAX_FDS = 3, 64  # the descriptor of a tool process's socket, and the number of descriptors it may open


class Process:
    """A tool process as the zygote sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid, self.channel, self.calls, self.spent = pid, channel, 0, 0.0


class Zygote:
    """Answers requests one after the other."""

    def __init__(self, channel: socket.socket, settings: dict[str, Any], restrict: Any, namespaces: bool) -> None:
        self.channel, self.settings, self.restrict, self.namespaces = channel, settings, restrict, namespaces
        self.max_bytes = 64 * settings["output_chars"] + 65536  # four texts, at most 12 bytes per character
        self.pristine = tool.Pristine()
        self.kept: dict[int, Process] = {}  # by episode, in the order of use

    def serve(self) -> None:
        while True:
            frame = receive(self.channel)
            (episode,) = EPISODE.unpack_from(frame)
            outcome, payload = self.call(episode, frame[EPISODE.size :])
            send(self.channel, outcome.encode() + b"\n" + payload)

    def call(self, episode: int, request: bytes) -> tuple[str, bytes]:
        """Answer one request. Returns ('', reply of the tool process), or (why there is no reply, b'')."""
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
            # do not keep a process that used up its time, or that may have started others
            used_up = process.calls >= MAX_CALLS or process.spent > self.settings["timeout_s"] / 2
            if outcome or episode == ONE_CALL or used_up or self.restrict is restrict_without_seccomp:
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
        """Return the process of an episode. Start a new one if there is none, or if it died or wrote out of turn."""
        process = self.kept.pop(episode, None)
        if process is not None and select.select([process.channel], [], [], 0)[0]:
            self.end(process)
            process = None
        return process or self.fork(compiler.answer if episode == COMPILER else tool.evaluate)

    def fork(self, answer: Any) -> Process:
        """Start a process that answers requests. It gives up its rights before it reads the first one."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(theirs.fileno(), OWN_FD)
                os.closerange(OWN_FD + 1, MAX_FDS)
                limits.die_with_parent()
                limits.lower_limit(resource.RLIMIT_CPU, 2 * int(self.settings["timeout_s"]) + 2)
                self.restrict()
                tool.serve(OWN_FD, answer, self.settings["output_chars"], self.pristine)
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        return Process(pid, ours)

    def end(self, process: Process, patience: float = 0) -> int | None:
        """End a process. Returns its status if it ended by itself within `patience` (a time of the monotonic clock)."""
        # first let it end by itself, so that we report its own status
        status = _reap(process.pid, min(patience, time.monotonic() + 0.2)) if patience else None
        process.channel.close()
        if self.restrict is restrict_without_seccomp:
            _kill_group(process.pid)
        if status is None:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
        if self.restrict is restrict_without_seccomp and self.namespaces:
            _kill_all()  # kills all that the tool started: nothing else is in this pid namespace
        return status

    def _exchange(self, process: Process, request: bytes, deadline: float) -> tuple[str, bytes]:
        """Send the request and receive the reply. Stop at the deadline, or when the parent is gone."""
        poll = select.poll()
        poll.register(process.channel.fileno(), select.POLLIN | select.POLLOUT)
        poll.register(self.channel.fileno(), select.POLLIN)
        unsent, data = memoryview(request), bytearray()
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                return "timeout", b""
            if self.channel.fileno() in ready:  # the parent sends nothing during a call, so it is gone
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
    with contextlib.suppress(ProcessLookupError):  # there is no group yet, or it is empty
        os.killpg(pid, signal.SIGKILL)


def _kill_all() -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # usually no process is left
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)


def receive(channel: socket.socket) -> bytes:
    """Receive one frame. Raises EOFError when the other end is gone."""
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
    """Send one frame."""
    channel.sendall(tool.LENGTH.pack(len(payload)) + payload)


def isolate(settings: dict[str, Any], namespaces: str) -> tuple[list[str], Any]:
    """Give up every right that this machine lets us give up.

    Returns the protections that are missing (of: files, network, processes), and the function that restricts each tool
    process.
    """
    without, missing = set(settings["without"]), []
    readable, hidden = settings["readable"], settings["hidden"]
    rooted = False
    try:
        if not namespaces:
            raise OSError("no mount namespace")
        limits.make_root(readable, hidden)
        rooted = True
    except OSError:
        try:
            if "landlock" in without:
                raise
            limits.restrict_files(readable, hidden)
        except OSError:
            missing.append("files")
    importlib.invalidate_caches()
    if sys.platform == "linux":
        everyone_reads = bool(os.stat(os.__file__).st_mode & 0o004)
        limits.drop_privileges(change_user=rooted and namespaces == "root" and everyone_reads)
        limits.die_with_parent()  # after the change of user, which resets this setting
    try:
        if "seccomp" in without:
            raise OSError("left out")
        restrict = limits.seccomp_installer()
    except OSError:
        restrict = restrict_without_seccomp
        if not namespaces:
            missing += ["network", "processes"]
    limits.set_limits(settings["memory_mb"])
    return missing, restrict


def restrict_without_seccomp() -> None:
    """Restrict a tool process on a machine without seccomp: few processes, all in one group."""
    os.setsid()
    limits.lower_limit(resource.RLIMIT_NPROC, MAX_PROCESSES)


def supervise(zygote: int, parent: int) -> None:
    """Wait for the zygote, and end it when the parent is gone.

    This polls. The kernel's parent-death signal would come when one thread of the parent ends.
    """
    while os.getppid() == parent:
        if os.waitpid(zygote, os.WNOHANG)[0]:
            os._exit(0)
        time.sleep(0.25)
    os.kill(zygote, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Start, report the missing protections (or why there is no worker), and serve until the parent is gone."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a batch system may send it to every process of a job
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
