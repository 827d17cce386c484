"""Hostile tool code, really executed: each attack costs one call, and the next call works."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from agentrl.sandbox import Sandbox, child, pool
from tests.support.sandbox_calls import ADD, HOSTILE, TIMEOUT_S, run

# -- ordinary code ---------------------------------------------------------------------------------------------------


def test_value_forms(sandbox: Sandbox) -> None:
    result = run(sandbox, "return {'a': [1, 2.5, None], 'ü': '北京'}")
    assert (result.type, result.error) == ("dict", None)
    assert result.json == '{"a": [1, 2.5, null], "ü": "北京"}'
    assert result.text == "{'a': [1, 2.5, None], 'ü': '北京'}"
    assert run(sandbox, "return (1, 'x')").json == '[1, "x"]'
    assert run(sandbox, "return (1, 'x')").text == "(1, 'x')"
    assert run(sandbox, "return {1: 'a', '1': 'b'}").json == '{"1": "a", "1": "b"}'  # text as the tool's own json.dumps
    assert run(sandbox, "return x", x="naïve 😀").value == "naïve 😀"
    assert run(sandbox, "pass").json == "null"


def test_value_that_is_not_json(sandbox: Sandbox) -> None:
    result = run(sandbox, "return {1, 2}")
    assert result.error is None and result.json is None and result.text == "{1, 2}"
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
    assert empty.error == ""  # an error without a message is an error
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
    assert first.error is None and run(sandbox, body) == first
    with Sandbox() as other:
        assert run(other, body) == first


def test_long_output_is_cut(sandbox: Sandbox) -> None:
    result = run(sandbox, "print('y' * 5000)\nreturn 'x' * 5000")
    assert result.truncated and result.text == "x" * 2000 and result.json == '"' + "x" * 1999
    assert result.stdout == "y" * 2000
    assert run(sandbox, "raise ValueError('z' * 5000)").error == "z" * 2000
    assert not run(sandbox, "return 'x' * 1000").truncated


# -- hostile code ----------------------------------------------------------------------------------------------------


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
        assert run(sandbox, read, p=str(path)).error is not None
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
    assert run(sandbox, fatal).error is not None  # it broke its own result, and nobody else's
    assert run(sandbox, "import re, math\nreturn [len([]), sorted([]), math.pi > 3]").value == [0, [], True]
    sandbox.call("leaked = 1\ndef f():\n    global g\n    g = 1", "f", {})
    assert run(sandbox, "return [n in globals() for n in ('leaked', 'g', 'f')]").value == [False, False, False]
