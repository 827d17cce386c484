"""Model servers of other projects, started for a test and stopped after it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def serving(
    command: list[str], directory: Path, patience: float, port: int | None = None, **settings: str
) -> Iterator[str]:
    """The address of the server that `command` starts on the port appended to it; its output goes to a file."""
    port = port or free_port()
    log = directory / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=directory,
            env=os.environ | SETTINGS | settings,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a server's own children end with it
        )
    try:
        deadline = time.monotonic() + patience
        while not _healthy(port):
            told = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < deadline, f"the server did not start: {told}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):  # a test may have killed it
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
