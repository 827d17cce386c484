"""The processes behind the calls: episodes that share one, a pool that loses none, machines that grant less."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.errors import UserError
from agentrl.sandbox import IsolationWarning, Sandbox, child, pool
from tests.support.sandbox_calls import ADD, ADD_APART, HOSTILE, TIMEOUT_S, alive, descendants, run, stopped

# -- episodes ----------------------------------------------------------------------------------------------------------

PID = "def pid():\n    import ctypes\n    return ctypes.CDLL(None).getpid()\n"


def test_an_episode_shares_a_process_but_no_namespace(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    first, second = sandbox.episode(), sandbox.episode()
    pids = [episode.call(PID, "pid", {}).value for episode in (first, second, first, second)]
    assert pids[0] == pids[2] != pids[1] == pids[3]
    assert first.call("leaked = 1\ndef f(): return 1", "f", {}).value == 1
    assert first.call("def f(): return 'leaked' in globals()", "f", {}).value is False
    draws = [first.call("import random\ndef f(): return random.random()", "f", {}).value for _ in range(2)]
    assert draws[0] == draws[1]  # the first call and the last are alike
    precision = (
        "from decimal import getcontext\ndef f():\n    old, getcontext().prec = getcontext().prec, 3\n    return old"
    )
    assert [first.call(precision, "f", {}).value for _ in range(2)] == [28, 28]


def test_a_signal_to_every_process_of_a_job_ends_no_episode(sandbox: Sandbox) -> None:
    """A batch system sends SIGUSR1 before its time limit, and the rollout in progress is then finished."""
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    episode = sandbox.episode()
    before = episode.call(PID, "pid", {}).value
    told = descendants(os.getpid())
    assert told
    for pid in told:
        os.kill(pid, signal.SIGUSR1)
    assert episode.call(PID, "pid", {}).value == before


PATCHES = {
    "module": "import builtins, json, math, sys, os\ndef f():\n    builtins.sorted = builtins.len = json.loads = None\n"
    "    math.pi = 3\n    sys.modules['re'] = None\n    sys.path.clear()\n    sys.setrecursionlimit(50)\n"
    "    os.environ['X'] = '1'\n    return 1",
    "class": "import string, json\ndef f():\n    json.JSONEncoder.encode = lambda *a: '9'\n    string.Template.x = 5",
}
INTACT = (
    "import re, math, json, os, sys, string\ndef f():\n    return [len([]), sorted([]), math.pi > 3, bool(sys.path), "
    "dict(os.environ), json.JSONEncoder().encode('x') == '\"x\"', hasattr(string.Template, 'x')]"
)


def test_what_one_episode_patches_no_other_sees(sandbox: Sandbox) -> None:
    for patch in PATCHES.values():
        first = sandbox.episode()
        first.call(patch, "f", {})
        assert sandbox.episode().call(INTACT, "f", {}).value == [0, [], True, True, {}, True, False]
        assert sandbox.call(INTACT, "f", {}).value == [0, [], True, True, {}, True, False]
    again = sandbox.episode()
    again.call(PATCHES["module"], "f", {})
    assert again.call(INTACT, "f", {}).value == [0, [], True, True, {}, True, False]


HARMLESS_AFTERWARDS = [name for name, (_, expected) in HOSTILE.items() if "timed out" not in expected]


@pytest.mark.parametrize("name", [*HARMLESS_AFTERWARDS, "hang"])
def test_an_episode_goes_on_after_an_attack(sandbox: Sandbox, name: str) -> None:
    if sandbox.missing():
        pytest.skip("no isolation")
    body = HOSTILE[name][0] if name in HOSTILE else "while True: pass"
    episode = sandbox.episode()
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    for _ in range(2):
        assert episode.call(ADD_APART, "add", {"a": 2, "b": 3}).value == 5
        assert episode.call(f"def tool():\n{lines}\n", "tool", {}).error is not None
    assert episode.call(ADD_APART, "add", {"a": 2, "b": 3}).value == 5


def test_between_calls_a_process_is_stopped_and_few_are_kept(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    others = set(descendants(os.getpid()))
    spin = (
        "import threading\ndef f():\n    def g():\n        while True: pass\n"
        "    threading.Thread(target=g, daemon=True).start()\n    return 1"
    )
    with Sandbox() as fresh:
        episodes = [fresh.episode() for _ in range(child.MAX_EPISODES + 4)]
        for episode in episodes * 2:
            assert episode.call(ADD_APART, "add", {"a": 1, "b": 1}).value == 2
        assert episodes[-1].call(spin, "f", {}).value == 1
        tools = set(descendants(os.getpid())) - others
        deadline = time.monotonic() + 3  # the last one has been told to stop, and may not have yet
        while (count := sum(map(stopped, tools))) != child.MAX_EPISODES and time.monotonic() < deadline:
            time.sleep(0.01)
        assert count == child.MAX_EPISODES
        assert episodes[-1].call(ADD_APART, "add", {"a": 1, "b": 1}).value == 2


def test_a_process_that_speaks_out_of_turn_is_replaced(sandbox: Sandbox) -> None:
    forged = child.struct.pack("=I", 2) + b"{}"
    late = (
        f"import threading, os, time\ndef f():\n    def g():\n        while 1: os.write({child.OWN_FD}, {forged!r})\n"
    )
    late += "    threading.Thread(target=g, daemon=True).start()\n    time.sleep(0.05)\n    return 1"
    episode = sandbox.episode()
    assert episode.call(late, "f", {}).error == "the tool wrote no valid result"
    assert episode.call(ADD_APART, "add", {"a": 1, "b": 1}).value == 2
    exits = "import threading, os, time\ndef f():\n    threading.Timer(0.01, os._exit, (0,)).start()\n    return 1"
    assert episode.call(exits, "f", {}).error is None
    time.sleep(0.05)
    assert sandbox.call(ADD_APART, "add", {"a": 1, "b": 1}).value == 2


def test_a_long_episode_outlives_its_processes(sandbox: Sandbox) -> None:
    episode = sandbox.episode()
    calls = [episode.call(ADD_APART, "add", {"a": i, "b": 1}).value for i in range(child.MAX_CALLS + 10)]
    assert calls == list(range(1, child.MAX_CALLS + 11))
    big = "x" * 3_000_000  # more than a socket holds
    assert episode.call("def f(x): return len(x)", "f", {"x": big}).value == len(big)


# -- the pool --------------------------------------------------------------------------------------------------------


def test_hundreds_of_calls(sandbox: Sandbox) -> None:
    assert [sandbox.call(ADD, "add", {"a": i, "b": 1}).value for i in range(150)] == list(range(1, 151))


def test_threads_share_a_pool() -> None:
    results: dict[int, Any] = {}
    with Sandbox(workers=2) as sandbox:

        def work(n: int) -> None:
            results[n] = [sandbox.call(ADD, "add", {"a": n, "b": i}).value for i in range(20)]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # a worker whose starting thread has ended goes on
        assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
    assert results == {n: [n + i for i in range(20)] for n in range(4)}


def test_a_lost_worker_is_replaced() -> None:
    with Sandbox() as sandbox:
        sandbox.missing()
        slot = sandbox._slots.queue[0]
        slot._process.send_signal(signal.SIGKILL)
        slot._process.wait()
        assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).error == "the sandbox worker was lost"
        assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2


def test_an_interrupted_call_does_not_answer_the_next() -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    with Sandbox() as sandbox:
        sandbox.missing()
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupt):
                run(sandbox, "import time\ntime.sleep(0.5)\nreturn 'stale'")
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_of_the_parent_gets_workers_of_its_own() -> None:
    with Sandbox() as sandbox:
        assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = int(sandbox.call(ADD, "add", {"a": 2, "b": 2}).value != 4)
                sandbox.close()
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert sandbox.call(ADD, "add", {"a": 3, "b": 3}).value == 6


def test_closed() -> None:
    sandbox = Sandbox()
    assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
    process = sandbox._slots.queue[0]._process
    sandbox.close()
    sandbox.close()
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.call(ADD, "add", {})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_the_parent() -> None:
    """Also while a tool runs, and when the parent has no chance to say goodbye."""
    script = (
        "import threading, time, os\nfrom agentrl.sandbox import Sandbox\ns = Sandbox()\ns.missing()\n"
        "threading.Thread(target=s.call, args=('def f():\\n while True: pass', 'f', {}), daemon=True).start()\n"
        "time.sleep(0.2)\nprint(s._pid, flush=True)\ntime.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(child.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        family = descendants(parent.pid)
        assert len(family) == 4  # supervisor, zygote, compiler, tool
        parent.kill()
    deadline = time.monotonic() + 3
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in family)


# -- degraded machines -----------------------------------------------------------------------------------------------


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux means")
@pytest.mark.parametrize(
    "without",
    [
        ("namespaces", "landlock", "seccomp"),
        *(
            pytest.param(lacking, marks=pytest.mark.slow)
            for lacking in (
                *(("root",), ("namespaces",), ("seccomp",), ("landlock",)),
                *(("namespaces", "seccomp"), ("root", "seccomp")),
            )
        ),
    ],
)
def test_degradation_is_named_and_strict_refuses(
    without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, listening_port: int
) -> None:
    with Sandbox() as complete:
        if complete.missing():
            pytest.skip("this machine is degraded already")
    monkeypatch.setattr(pool, "_WITHOUT", without)
    monkeypatch.setattr(pool, "_warned", set())
    expected = []
    if {"namespaces", "landlock"} <= set(without):
        expected.append("files")
    if {"namespaces", "seccomp"} <= set(without):
        expected += ["network", "processes"]
    with warnings.catch_warnings(record=True, category=IsolationWarning) as caught:
        warnings.simplefilter("always")
        with Sandbox(timeout_s=TIMEOUT_S) as sandbox, Sandbox(timeout_s=TIMEOUT_S) as second:
            assert sandbox.missing() == second.missing() == tuple(expected)
            assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
            assert run(sandbox, "while True: pass").timed_out
            reads = run(sandbox, "return len(open('/etc/passwd').read())")
            assert (reads.error is None) == ("files" in expected)
            connects = run(sandbox, "import socket\nsocket.create_connection(('127.0.0.1', p), 1)", p=listening_port)
            assert (connects.error is None) == ("network" in expected)
            assert run(sandbox, "import csv\nreturn 1").value == 1
            if "seccomp" in without:
                before = descendants(os.getpid())
                run(sandbox, "import os\nfor _ in range(3):\n    os.fork()\nwhile True: pass")
                assert descendants(os.getpid()) == before  # swept away with their group or namespace
            assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
    assert len(caught) == bool(expected)  # one warning for both sandboxes, naming all that is missing
    if expected:
        assert all(pool._MEANING[name] in str(caught[0].message) for name in expected)
        with pytest.raises(UserError, match=r"sandbox=strict: tool code can .* set sandbox=auto"):
            Sandbox(strict=True)


def test_strict_is_satisfied_here_if_nothing_is_missing(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("this machine is degraded")
    with Sandbox(strict=True) as strict:
        assert strict.call(ADD, "add", {"a": 1, "b": 1}).value == 2


def test_bad_settings_are_refused() -> None:
    for settings in ({"workers": 0}, {"timeout_s": 0}, {"memory_mb": 1}, {"output_chars": 0}):
        with pytest.raises(UserError, match="sandbox"):
            Sandbox(**settings)  # type: ignore[arg-type]


def test_json_text_round_trips(sandbox: Sandbox) -> None:
    for value in ({}, [], "", 0, -1.5, True, None, {"a": {"b": ["c", {"d": None}]}}, "a\n\t\"'\\\u2028"):
        result = run(sandbox, "return x", x=value)
        assert result.value == value and result.json == json.dumps(value, ensure_ascii=False)
