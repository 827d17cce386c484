"""The parent's side of `worker.py`: starts the child, asks it, and restarts it after a call that does not return."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.core.install import install_line

VERSION = "2026.3.23"
INSTALL = f"{install_line('bfcl')} && pip install --no-deps bfcl-eval=={VERSION}"
REQUIRED = ("bfcl_eval", "mpmath", "rank_bm25", "overrides", "filelock")
MEMORY_BYTES = 4 << 30  # address space of the child
ENCODER_SECONDS = 600.0  # for the import of torch and the encoder, on a busy machine


class TookTooLong(Exception):
    """The child did not answer within the time limit. It was killed, and all its instances are lost."""


def package_dir() -> Path:
    """Return the directory of the bfcl_eval package, without importing it.

    Raises UserError if it is missing or has another version. The advice has --no-deps, because the package requires old
    releases of packages that we need newer, such as numpy.
    """
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise UserError(f"bench=bfcl needs the official package bfcl-eval, which is not installed; {INSTALL}")
    found = importlib.metadata.version("bfcl_eval")
    if found != VERSION:
        raise UserError(f"bench=bfcl was written for bfcl-eval {VERSION}, but {found} is installed; {INSTALL}")
    return Path(spec.origin).parent


class Simulator:
    """One child process, shared by any number of environments. It answers requests one after the other.

    `timeout` is in seconds. `memory_bytes` limits the child's address space; 0 sets no limit.
    """

    def __init__(self, timeout: float, memory_bytes: int = MEMORY_BYTES) -> None:
        self.timeout, self._memory_bytes = timeout, memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.lock = threading.RLock()  # held during several requests that must reach the same child
        self._numbers = itertools.count()
        self._forgotten: list[str] = []
        self._root = tempfile.TemporaryDirectory(prefix="agentrl-bfcl-", ignore_cleanup_errors=True)
        self._generation = 0
        self._encoder: str | None = None

    def new_key(self) -> str:
        """Return a unique name for the instances of one episode."""
        return f"episode-{next(self._numbers)}"

    def generation(self) -> int:
        """Return how many children were started, including the present one. Instances of earlier ones are lost."""
        with self.lock:
            self._start()
            return self._generation

    def load_encoder(self, path: str) -> str | None:
        """Load the encoder of the vector memory, in this child and all later ones. Return the reason if that fails."""
        with self.lock:
            problem: str | None = self.ask("load_encoder", ENCODER_SECONDS, path=path)["problem"]
            self._encoder = path if problem is None else None
            return problem

    def scratch_dir(self, name: str) -> Path:
        """Make a directory that exists as long as the simulator."""
        path = Path(self._root.name) / name
        path.mkdir(exist_ok=True)
        return path

    def forget(self, key: str) -> None:
        """Let the child drop the instances of an episode at the next request. Called when an environment is deleted."""
        self._forgotten.append(key)

    def ask(self, operation: str, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """Ask the child. Raises TookTooLong, and RuntimeError if the official code failed on the request."""
        with self.lock:
            child = self._start()
            dropped, self._forgotten = self._forgotten, []
            request = {"operation": operation, "drop": dropped, **fields}
            answer = self._exchange(child, request, self.timeout if timeout is None else timeout)
        if "failed" in answer:
            raise RuntimeError(f"bfcl-eval failed on {operation}: {answer['failed']}")
        return answer

    def _exchange(self, child: subprocess.Popen[bytes], request: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            answer: dict[str, Any] = json.loads(self._read_line(child, timeout))
        except (TookTooLong, BrokenPipeError):
            self._stop()
            raise TookTooLong from None
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            package_dir()
            worker = Path(__file__).with_name("worker.py")
            self._buffer = b""
            self._child = subprocess.Popen(
                # -P: the modules in this directory must not hide others of the same name.
                [sys.executable, "-P", str(worker), str(self._memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "BFCL_PROJECT_ROOT": self._root.name},
                cwd=self._root.name,
            )
            weakref.finalize(self, _end, self._child)
            self._generation += 1
            if self._encoder is not None:  # now, because a call has not the time for it
                request = {"operation": "load_encoder", "drop": [], "path": self._encoder}
                self._exchange(self._child, request, ENCODER_SECONDS)
        return self._child

    def _read_line(self, child: subprocess.Popen[bytes], timeout: float) -> bytes:
        assert child.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TookTooLong
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:  # it died, e.g. at its memory limit
                    raise TookTooLong
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _stop(self) -> None:
        if self._child is not None:
            _end(self._child)
        self._child = None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # nobody reads the rest any more
                stream.close()
