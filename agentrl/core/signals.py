"""The signals that ask a command to save and stop. The command line imports this, so torch is not imported here."""

from __future__ import annotations

import os
import signal

SWEPT_BY = "AGENTRL_SWEPT_BY"  # the process id of a sweep's command; it sets this for the processes of its jobs


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to save and stop: Ctrl-C, a termination and, except under nohup, a hang-up.

    A batch system sends SIGUSR1 before its time limit. A process that a parallel sweep started listens to the
    termination alone. The sweep's command passes the others on as a termination.
    """
    if os.environ.get(SWEPT_BY, str(os.getpid())) != str(os.getpid()):
        return [signal.SIGTERM]
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, *([] if nohup else [signal.SIGHUP])]
