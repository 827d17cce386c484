"""Hostile tool code, really executed: each attack costs one call, and the next call works."""

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

from agentrl.errors import UserError
from agentrl.sandbox import IsolationWarning, Result, Sandbox, child, pool

TIMEOUT_S = 1.0
ADD = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=TIMEOUT_S, memory_mb=256, output_chars=2000) as shared:
        yield shared


@pytest.fixture(autouse=True)
def next_call_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that used the shared sandbox, an ordinary call succeeds."""
    yield
    if "sandbox" in request.fixturenames:
        shared: Sandbox = request.getfixturevalue("sandbox")
        assert shared.call(ADD, "add", {"a": 2, "b": 3}).value == 5


def run(sandbox: Sandbox, body: str, **arguments: Any) -> Result:
    """Call a function with this body; its parameters are the arguments'."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return sandbox.call(f"def tool({', '.join(arguments)}):\n{lines}\n", "tool", arguments)


# -- ordinary code ---------------------------------------------------------------------------------------------------


def test_value_forms(sandbox: Sandbox) -> None:
    result = run(sandbox, "return {'a': [1, 2.5, None], 'ü': '北京'}")
    assert (result.type, result.error, result.ok) == ("dict", None, True)
    assert result.json == '{"a": [1, 2.5, null], "ü": "北京"}'
    assert result.text == "{'a': [1, 2.5, None], 'ü': '北京'}"
    assert run(sandbox, "return (1, 'x')").json == '[1, "x"]'
    assert run(sandbox, "return (1, 'x')").text == "(1, 'x')"
    assert run(sandbox, "return {1: 'a', '1': 'b'}").json == '{"1": "a", "1": "b"}'  # text as the tool's own json.dumps
    assert run(sandbox, "return x", x="naïve 😀").value == "naïve 😀"
    assert run(sandbox, "pass").json == "null"


def test_value_that_is_not_json(sandbox: Sandbox) -> None:
    result = run(sandbox, "return {1, 2}")
    assert result.ok and result.json is None and result.text == "{1, 2}"
    assert result.json_error == "Object of type set is not JSON serializable"
    with pytest.raises(ValueError, match="type set"):
        _ = result.value
    assert "Circular" in (run(sandbox, "x = []\nx.append(x)\nreturn x").json_error or "")


def test_lone_surrogate_is_replaced(sandbox: Sandbox) -> None:
    result = run(sandbox, "return chr(0xD800) + x", x="\udc00!")
    assert result.text == "??!" and result.json == '"??!"'


def test_stdout_is_captured_at_both_times(sandbox: Sandbox) -> None:
    result = sandbox.call("print('loading')\ndef f():\n    print('calling', end='')\n    return 1", "f", {})
    assert (result.value, result.stdout) == (1, "loading\ncalling")


def test_module_level_helpers_share_the_namespace(sandbox: Sandbox) -> None:
    source = "import re\nLIMIT = 3\ndef g(x):\n    return re.sub('a', 'b', x)[:LIMIT]\ndef f(x):\n    return g(x)"
    assert sandbox.call(source, "f", {"x": "aaaa"}).value == "bbb"


STANDARD = "datetime re json math calendar cmath operator decimal fractions os csv xml.etree.ElementTree asyncio"


@pytest.mark.parametrize("module", STANDARD.split())
def test_standard_library_imports(sandbox: Sandbox, module: str) -> None:
    assert run(sandbox, f"import {module}\nreturn 1").value == 1


def test_optional_packages(sandbox: Sandbox) -> None:
    pytest.importorskip("dateutil")
    result = run(sandbox, "from dateutil import parser, rrule\nreturn str(parser.parse('3 May 2021').date())")
    assert result.value == "2021-05-03"


def test_other_packages_are_not_visible(sandbox: Sandbox) -> None:
    assert run(sandbox, "import torch").error == "No module named 'torch'"
    assert run(sandbox, "import agentrl").error == "No module named 'agentrl'"


def test_errors_carry_the_exceptions_own_text(sandbox: Sandbox) -> None:
    assert sandbox.call(ADD, "add", {"a": 1}).error == "add() missing 1 required positional argument: 'b'"
    assert sandbox.call(ADD, "add", {"a": 1, "c": 2}).error == "add() got an unexpected keyword argument 'c'"
    assert sandbox.call(ADD, "subtract", {}).error == "'subtract'"  # KeyError
    assert "must be a mapping" in (sandbox.call(ADD, "add", [1, 2]).error or "")
    assert "must be a mapping" in (sandbox.call(ADD, "add", None).error or "")
    assert "invalid syntax" in (sandbox.call("def add(:", "add", {}).error or "")
    assert run(sandbox, "raise ValueError('no such city')").error == "no such city"
    empty = run(sandbox, "raise ValueError")
    assert empty.error == "" and not empty.ok
    assert run(sandbox, "raise SystemExit(4)").error == "4"
    assert run(sandbox, "input()").error == "EOF when reading a line"


def test_arguments_that_are_not_json(sandbox: Sandbox) -> None:
    assert "arguments are not JSON" in (sandbox.call(ADD, "add", {"a": {1}, "b": 2}).error or "")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "arguments are not JSON" in (sandbox.call(ADD, "add", {"a": deep, "b": 2}).error or "")


def test_deterministic(sandbox: Sandbox) -> None:
    body = "import random\nreturn [random.random(), hash('abc'), list({'x', 'y', 'z', 'w'})]"
    first = run(sandbox, body)
    assert first.ok and run(sandbox, body) == first
    with Sandbox() as other:
        assert run(other, body) == first


def test_long_output_is_cut(sandbox: Sandbox) -> None:
    result = run(sandbox, "print('y' * 5000)\nreturn 'x' * 5000")
    assert result.truncated and result.text == "x" * 2000 and result.json == '"' + "x" * 1999
    assert result.stdout == "y" * 2000
    assert run(sandbox, "raise ValueError('z' * 5000)").error == "z" * 2000
    assert not run(sandbox, "return 'x' * 1000").truncated


# -- hostile code ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(sandbox: Sandbox, name: str) -> None:
    if sandbox.missing():
        pytest.skip(f"this machine grants no isolation of {sandbox.missing()}")
    body, expected = HOSTILE[name]
    start = time.monotonic()
    result = run(sandbox, body)
    assert time.monotonic() - start < TIMEOUT_S + 1.5
    assert result.error is not None and expected in result.error
    assert result.timed_out == ("timed out" in result.error)


def test_a_thread_is_allowed(sandbox: Sandbox) -> None:
    body = "import threading\nx = []\nt = threading.Thread(target=x.append, args=(1,))\nt.start()\nt.join()\nreturn x"
    assert run(sandbox, body).value == [1]


def test_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_SECRET", "hunter2")
    with Sandbox() as fresh:
        assert run(fresh, "import os\nreturn dict(os.environ)").value == {}
        c_level = (
            "import ctypes\ng = ctypes.CDLL(None).getenv\ng.restype = ctypes.c_char_p\nreturn g(b'AGENTRL_SECRET')"
        )
        assert run(fresh, c_level).value is None


def test_nothing_but_the_standard_library_is_readable(sandbox: Sandbox, tmp_path: Path) -> None:
    if "files" in sandbox.missing():
        pytest.skip("no file isolation on this machine")
    secret = tmp_path / "model.safetensors"
    secret.write_text("weights")
    read = "import os\nreturn os.listdir(p) if os.path.isdir(p) else open(p).read()"
    for path in (secret, Path(__file__), Path(child.__file__), Path("/etc"), Path("/proc"), Path("/dev")):
        assert not run(sandbox, read, p=str(path)).ok
    everything = "import os\nreturn [os.path.join(d, f) for d, _, files in os.walk('/') for f in files]"
    with Sandbox(output_chars=10_000_000) as wide:
        readable = pool._visible_files()["readable"]
        assert all(any(Path(file).is_relative_to(path) for path in readable) for file in run(wide, everything).value)


def test_descriptors_of_the_parent_are_not_there(sandbox: Sandbox) -> None:
    body = (
        "import os\nopen_ = []\nfor fd in range(256):\n    try: os.fstat(fd)\n    except OSError: continue\n"
        "    open_.append(fd)\nreturn open_"
    )
    secret = os.open("/", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        with Sandbox() as fresh:
            assert len(run(fresh, body).value) == 4  # the three standard ones and the result's pipe
    finally:
        os.close(secret)


def test_printing_cannot_forge_a_result(sandbox: Sandbox) -> None:
    forged = child.struct.pack("=I", 2) + b"{}"
    body = f"import os, sys\nos.write(1, {forged!r})\nos.write(2, {forged!r})\nprint({forged!r})\nreturn 'real'"
    assert run(sandbox, body).value == "real"


WRITE_EVERYWHERE = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, {!r})\n    except OSError: pass\n"


NOT_A_REPLY = [b"{}", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"truncated": 1}', b'{"truncated": false, "text": 3}']


@pytest.mark.parametrize("payload", NOT_A_REPLY)
def test_a_result_written_by_the_tool_itself_is_checked(sandbox: Sandbox, payload: bytes) -> None:
    framed = child.struct.pack("=I", len(payload)) + payload
    assert run(sandbox, WRITE_EVERYWHERE.format(framed) + "os._exit(0)").error == "the tool wrote no valid result"


def test_a_result_that_claims_to_be_huge_is_refused(sandbox: Sandbox) -> None:
    assert (
        run(sandbox, WRITE_EVERYWHERE.format(b"\xff" * 8) + "while True: pass").error
        == "the tool wrote no valid result"
    )


def test_patches_do_not_reach_the_next_call(sandbox: Sandbox) -> None:
    patch = (
        "import builtins, json, sys, math\nbuiltins.sorted = lambda x: 42\njson.loads = lambda x: '666'\n"
        "math.pi = 3\nsys.modules['re'] = None\nsys.path.clear()\nreturn sorted([])"
    )
    assert run(sandbox, patch).text == "42"
    fatal = "import builtins, json\nbuiltins.len = lambda x: 42\njson.dumps = None\nreturn 1"
    assert not run(sandbox, fatal).ok  # it broke its own result, and nobody else's
    assert run(sandbox, "import re, math\nreturn [len([]), sorted([]), math.pi > 3]").value == [0, [], True]
    sandbox.call("leaked = 1\ndef f():\n    global g\n    g = 1", "f", {})
    assert run(sandbox, "return [n in globals() for n in ('leaked', 'g', 'f')]").value == [False, False, False]


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
        assert episode.call(ADD, "add", {"a": 2, "b": 3}).value == 5
        assert not episode.call(f"def tool():\n{lines}\n", "tool", {}).ok
    assert episode.call(ADD, "add", {"a": 2, "b": 3}).value == 5


def test_between_calls_a_process_is_stopped_and_few_are_kept(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    others = set(_descendants(os.getpid()))
    spin = (
        "import threading\ndef f():\n    def g():\n        while True: pass\n"
        "    threading.Thread(target=g, daemon=True).start()\n    return 1"
    )
    with Sandbox() as fresh:
        episodes = [fresh.episode() for _ in range(child.MAX_EPISODES + 4)]
        for episode in episodes * 2:
            assert episode.call(ADD, "add", {"a": 1, "b": 1}).value == 2
        assert episodes[-1].call(spin, "f", {}).value == 1
        tools = set(_descendants(os.getpid())) - others
        deadline = time.monotonic() + 3  # the last one has been told to stop, and may not have yet
        while (stopped := sum(map(_stopped, tools))) != child.MAX_EPISODES and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stopped == child.MAX_EPISODES
        assert episodes[-1].call(ADD, "add", {"a": 1, "b": 1}).value == 2


def test_a_process_that_speaks_out_of_turn_is_replaced(sandbox: Sandbox) -> None:
    forged = child.struct.pack("=I", 2) + b"{}"
    late = (
        f"import threading, os, time\ndef f():\n    def g():\n        while 1: os.write({child.OWN_FD}, {forged!r})\n"
    )
    late += "    threading.Thread(target=g, daemon=True).start()\n    time.sleep(0.05)\n    return 1"
    episode = sandbox.episode()
    assert episode.call(late, "f", {}).error == "the tool wrote no valid result"
    assert episode.call(ADD, "add", {"a": 1, "b": 1}).value == 2
    exits = "import threading, os, time\ndef f():\n    threading.Timer(0.01, os._exit, (0,)).start()\n    return 1"
    assert episode.call(exits, "f", {}).ok
    time.sleep(0.05)
    assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2


def test_a_long_episode_outlives_its_processes(sandbox: Sandbox) -> None:
    episode = sandbox.episode()
    calls = [episode.call(ADD, "add", {"a": i, "b": 1}).value for i in range(child.MAX_CALLS + 10)]
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
        family = _descendants(parent.pid)
        assert len(family) == 3  # supervisor, zygote, tool
        parent.kill()
    deadline = time.monotonic() + 3
    while any(_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in family)


def _descendants(pid: int) -> list[int]:
    children = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    return children + [d for c in children for d in _descendants(c)]


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# -- degraded machines -----------------------------------------------------------------------------------------------


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux means")
@pytest.mark.parametrize("without", [("root",), ("namespaces",), ("seccomp",), ("namespaces", "seccomp"), ("landlock",),
                                     ("root", "seccomp"), ("namespaces", "landlock", "seccomp")])  # fmt: skip
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
            assert reads.ok == ("files" in expected)
            connects = run(sandbox, "import socket\nsocket.create_connection(('127.0.0.1', p), 1)", p=listening_port)
            assert connects.ok == ("network" in expected)
            assert run(sandbox, "import csv\nreturn 1").value == 1
            if "seccomp" in without:
                before = _descendants(os.getpid())
                run(sandbox, "import os\nfor _ in range(3):\n    os.fork()\nwhile True: pass")
                assert _descendants(os.getpid()) == before  # swept away with their group or namespace
            assert sandbox.call(ADD, "add", {"a": 1, "b": 1}).value == 2
    assert len(caught) == bool(expected)  # one warning for both sandboxes, naming all that is missing
    if expected:
        assert all(pool._MEANING[name] in str(caught[0].message) for name in expected)
        with pytest.raises(UserError, match=r"sandbox: tool code can .* set sandbox=auto"):
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
