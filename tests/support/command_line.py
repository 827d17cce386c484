"""The command line in the process of the tests: a new process takes a second to import what most commands need."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from agentrl.commands.cli import main
from agentrl.core.signals import stop_signals


def run_here(*arguments: str) -> int:
    """The exit code of `agentrl ARGUMENTS`."""
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        with patch.object(sys, "argv", ["agentrl", *arguments]):
            main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("main ends in SystemExit")


def agentrl(where: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `agentrl ARGUMENTS` returns and prints in the directory `where`."""
    out, err = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, environment), chdir(where), redirect_stdout(out), redirect_stderr(err):
        code = run_here(*arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
