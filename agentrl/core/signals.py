"""The signals that ask a command to save and stop. No torch here."""

from __future__ import annotations

import os
import signal

SWEPT_BY = "AGENTRL_SWEPT_BY"  # set by a sweep's command for the processes that do its jobs: its own number


def stop_signals() -> list[signal.Signals]:
    """What asks to save and stop: Ctrl-C, a termination, a terminal that hangs up (unless nohup made that nothing).

    In the process of a parallel launcher a termination alone: the sweep's command passes the others on as that.
    """
    if os.environ.get(SWEPT_BY, str(os.getpid())) != str(os.getpid()):
        return [signal.SIGTERM]
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM] if nohup else [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
