"""Sandboxed calls, hostile ones too, and the processes behind them as /proc shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.sandbox import Result, Sandbox

TIMEOUT_S = 1.0
ADD = "def add(a, b):\n    return a + b\n"
ADD_APART = ADD + "class Other: pass\n"  # not simple, so that it runs in the process of its episode

HOSTILE = {
    "hang": ("while True: pass", "timed out after 1 s"),
    "sleep": ("import time\ntime.sleep(60)", "timed out after 1 s"),
    "exit": ("import os\nos._exit(0)", "the tool ended without a result (exit status 0)"),
    "abort": ("import os\nos.abort()", "the tool ended without a result"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "the tool ended without a result (signal 11)"),
    "memory bomb": ("x = 'x' * (1 << 40)", "out of memory"),
    "slow memory bomb": ("x = []\nwhile True: x.append('y' * 1000000 + str(len(x)))", "out of memory"),
    "deep recursion": ("def f(n): return f(n + 1)\nf(0)", "maximum recursion depth exceeded"),
    "unlimited recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)]\nf(0)", ""),
    "fork": ("import os\nos.fork()", "Operation not permitted"),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timed out after 1 s"),
    "thread bomb": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", ""),
    "exec": ("import os\nos.execv('/bin/sh', ['sh'])", ""),
    "subprocess": ("import subprocess\nsubprocess.run(['true'])", ""),
    "gigabyte print": ("print('x' * (1 << 30))", "out of memory"),
    "gigabyte print in pieces": ("while True: print('x' * 100000)", "printed more than 1000000 characters"),
    "gigabyte value": ("return 'x' * (1 << 30)", "out of memory"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", ""),
    "raw socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "Operation not permitted"),
    "home": ("import os\nreturn os.listdir(os.path.expanduser('~root'))", "No such file or directory"),
    "passwords": ("return open('/etc/passwd').read()", "No such file or directory"),
    "process environment": ("return open('/proc/self/environ').read()", "No such file or directory"),
    "write": ("open('/written', 'w')", ""),
    "kill": ("import os\nos.kill(1, 9)", "Operation not permitted"),
    "kill all": ("import os\nos.kill(-1, 9)", "Operation not permitted"),
    "trace": ("import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0): raise OSError('refused')", "refused"),
    "namespaces": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError('refused')", "refused"),
    "raise a hostile exception": ("class E(BaseException):\n    def __str__(self): raise E\nraise E", "E"),
    "return a hostile value": ("class V:\n    def __str__(self): raise KeyError('v')\nreturn V()", "'v'"),
    "close descriptors": ("import os\nos.closerange(0, 64)", "the tool ended without a result"),
    "raise the limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", ""),
}  # fmt: skip


def run(sandbox: Sandbox, body: str, **arguments: Any) -> Result:
    """Call a function with this body; its parameters are the arguments'."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return sandbox.call(f"def tool({', '.join(arguments)}):\n{lines}\n", "tool", arguments)


def descendants(pid: int) -> list[int]:
    children = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    return children + [d for c in children for d in descendants(c)]


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
