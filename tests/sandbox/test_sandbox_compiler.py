"""Sources are compiled once, where no tool has run, and only code that can leave nothing behind shares a process."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from agentrl.benches.toolhop import load_rows
from agentrl.mining.examples import example_calls
from agentrl.sandbox import Sandbox, child, pool
from agentrl.sandbox.compiler import SIMPLE as SIMPLE_MARK
from agentrl.sandbox.compiler import is_simple
from agentrl.sandbox.pool import _Worker
from tests.support.sandbox_calls import ADD, HOSTILE, run


def test_a_source_is_compiled_once_and_code_is_dropped_beyond_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [f"def f(x):\n    return x + {n}\n" for n in range(3)]
    with Sandbox() as sandbox:
        assert sandbox.call(sources[0], "f", {"x": 1}).value == 1
        size = sandbox._code_bytes
        assert size == len(sandbox._code[sources[0]]) > 1
        monkeypatch.setattr(pool, "CODE_BYTES", 2 * size)
        assert sandbox.call(sources[1], "f", {"x": 1}).value == 2
        assert sandbox.call(sources[0], "f", {"x": 1}).value == 1  # used last, so the other one goes
        assert sandbox.call(sources[2], "f", {"x": 1}).value == 3
        assert list(sandbox._code) == [sources[0], sources[2]] and sandbox._code_bytes == 2 * size
        monkeypatch.setattr(_Worker, "call", lambda *_: pytest.fail("compiled again"))
        assert sandbox._compile(sources[0], sandbox._slots.queue[0]) == ("", sandbox._code[sources[0]])


def test_code_is_compiled_where_no_tool_has_run(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tool does to the compiler of its own process reaches no code that is kept."""
    asked: list[int] = []
    call = _Worker.call
    monkeypatch.setattr(
        _Worker, "call", lambda self, number, request: asked.append(number) or call(self, number, request)
    )
    episode = sandbox.episode()
    spoil = "import builtins, marshal\ndef f():\n    g = lambda *a, **k: (compile_('x = 1', 'x', 'exec'), False)\n"
    spoil += "    global compile_\n    compile_ = builtins.compile\n    builtins.compile = g\n    marshal.dumps = g\n"
    assert episode.call(spoil, "f", {}).error is None
    fresh = "def product(a, b):\n    return a * b\n"
    episode.call(fresh, "product", {"a": 2, "b": 3})  # first seen in the spoilt episode
    assert sandbox.episode().call(fresh, "product", {"a": 2, "b": 3}).value == 6
    assert asked.count(child.COMPILER) == 2  # once a source, and what is asked of it is all that it ever does
    assert [number == child.COMPILER for number in asked] == [True, False, True, False, False]


def test_sources_that_hurt_the_compiler_cost_one_call(sandbox: Sandbox) -> None:
    for source in (
        "(" * 100_000,
        "-" * 1_000_000 + "1",
        "x = " + "[" * 150 + "]" * 150,
        "x = 1" + "+1" * 200_000,
        "\0",
    ):
        result = sandbox.call(source, "f", {})
        assert result.error  # too deep, no f, null bytes, a crash: whatever it is, it is an observation
        assert sandbox.call(ADD, "add", {"a": 2, "b": 3}).value == 5


def test_tools_are_compiled_without_this_modules_own_features(sandbox: Sandbox) -> None:
    assert sandbox.call("def f(x: Unknown):\n    return 1", "f", {"x": 1}).error == "name 'Unknown' is not defined"


# -- simple code -----------------------------------------------------------------------------------------------------

SIMPLE = {
    "a table": "def f(x):\n    table = {'a': [1, (2, 3)]}\n    return sorted(table.get(x, []), key=lambda v: -v)[:2]",
    "a method": "def f(x: str) -> str:\n    return ', '.join(w.title() for w in x.split() if not w.isdigit())",
    "modules": "import re, json\nfrom datetime import datetime as dt\ndef f(x): return re.findall('a', json.dumps(x))"
    " + dt.strptime(x, '%Y').strftime('%d')",
    "types": "from typing import Dict, Optional\ndef f(x: Dict[str, int], y: Optional[int] = None): return type(x)",
    "errors": "def f(x):\n    try: return 1 / x\n    except ZeroDivisionError as e: raise ValueError(str(e)) from e",
    "fields": "def f(x):\n    return '{} {0} {name:>5.2f} {{}}'.format(x, name=x)",
    "main": "def f(input): return input\nif __name__ == '__main__':\n    print(f(1))",
    "shadowed": "import math\ndef f(math): return math.pi",
}

REACHING = {
    "an attribute is set": "def f(x):\n    x.y = 1",
    "an attribute is set by a loop": "def f(x):\n    for x.y in [1]: pass",
    "an attribute is deleted": "def f(x):\n    del x.y",
    "a dunder": "def f(x): return x.__class__",
    "a frame": "def f(): return (i for i in [1]).gi_frame",
    "a traceback": "def f():\n    try: 1 / 0\n    except Exception as e: return e.with_traceback",
    "a builtin": "def f(x): return getattr(x, 'y')",
    "a builtin that another scope binds": "def g():\n    open = 1\ndef f(x): return open(x)",
    "a builtin that a parameter binds": "def g(vars): pass\ndef f(): return vars()",
    "globals": "def f(): return globals()",
    "builtins": "def f(): return __builtins__",
    "a module": "import os\ndef f(): return os.getcwd()",
    "a module's memory": "import json\ndef f(): json.encoder.ESCAPE_DCT.clear()",
    "a module's list": "import calendar\ndef f(): calendar.mdays.append(1)",
    "a module under another name": "import json\nm = json\ndef f(): return m.encoder",
    "a module passed on": "import json\ndef f(): return g(json)\ndef g(m): return m.encoder",
    "a module in a list": "import json\ndef f(): return [json][0].encoder",
    "a name from a module": "from json import encoder\ndef f(): return encoder",
    "all of a module": "from json import *\ndef f(): return 1",
    "a relative import": "from . import x\ndef f(): return 1",
    "a class": "class A:\n    def __del__(self): print('later')\ndef f(): return 1",
    "a class by type": "def f(): return type('A', (), {'__del__': print})",
    "a class by type, hidden": "def f(): return type(*['A', (), {}])",
    "type passed on": "def f(): return [type][0]('A', (), {})",
    "a generator": "def f():\n    try: yield 1\n    finally: print('later')",
    "await": "async def f(): return 1",
    "with": "def f(x):\n    with x: pass",
    "match": "def f(x):\n    match x:\n        case object(__class__=y): return y",
    "a format that looks inside": "def f(x): return '{0.__class__}'.format(x)",
    "a format that looks at items": "def f(x): return '{0[a]}'.format(x)",
    "a nested format": "def f(x): return '{:{0.__class__}}'.format(x, x)",
    "a format of its own making": "def f(x, y): return y.format(x)",
    "format passed on": "def f(x): return [str.format][0]('{0.a}', x)",
    "format_map": "def f(x): return '{a.b}'.format_map(x)",
}  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
def test_simple(name: str) -> None:
    assert is_simple(ast.parse(SIMPLE[name]))


@pytest.mark.parametrize("name", REACHING)
def test_not_simple(name: str) -> None:
    assert not is_simple(ast.parse(REACHING[name]))


def test_hostile_code_is_simple_only_where_all_it_does_is_take_too_much() -> None:
    harmless = {
        "hang", "memory bomb", "slow memory bomb", "deep recursion", "gigabyte print", "gigabyte print in pieces",
        "gigabyte value",
    }  # fmt: skip
    functions = {name: "def f():\n" + textwrap.indent(body, "    ") for name, (body, _) in HOSTILE.items()}
    assert {name for name, source in functions.items() if is_simple(ast.parse(source))} == harmless


PID = "def pid():\n    import ctypes\n    return ctypes.CDLL(None).getpid()\n"
STATE = (
    "import builtins, collections, datetime, itertools, json, math, re, string, sys, typing\n"
    "def state():\n    import ctypes\n"
    "    held = (builtins, collections, datetime, itertools, json, json.encoder, math, re, string, typing)\n"
    "    return [{m.__name__: sorted((k, id(v)) for k, v in vars(m).items()) for m in held}, sys.path,\n"
    "            sys.getrecursionlimit(), ctypes.CDLL(None).getpid()]\n"
)


def as_if_simple(sandbox: Sandbox, source: str) -> str:
    """A probe of the process where simple code runs: the same source, under a mark that it has not earned."""
    sandbox.call(source, "nothing", {})
    sandbox._code[source] = SIMPLE_MARK + sandbox._code[source][1:]
    return source


def test_simple_code_shares_a_process_across_episodes(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    assert len({sandbox.episode().call(PID + "#", "pid", {}).value for _ in range(3)}) == 3
    probe = as_if_simple(sandbox, PID)
    assert len({sandbox.episode().call(probe, "pid", {}).value for _ in range(3)}) == 1


def test_nearly_all_tools_are_simple_and_leave_the_interpreter_as_it_was(shared: Path) -> None:
    """Every simple tool is run on an example; what the process holds of its modules is the same objects afterwards."""
    rows = load_rows(shared / "data/toolhop/ToolHop_subset100.json")
    sources = [(name, source) for row in rows for name, source in row.sources.items()]
    simple = [(name, source) for name, source in sources if is_simple(ast.parse(source))]
    assert len(simple) > 0.95 * len(sources)
    with Sandbox() as sandbox:
        probe = as_if_simple(sandbox, STATE)
        states = []
        for n, (name, source) in enumerate(simple):
            for arguments in list(example_calls(source, ast.parse(source), name))[:1]:
                sandbox.call(source, name, arguments)
            if n % 10 == 0:
                states.append(sandbox.call(probe, "state", {}).value)
    by_process: dict[int, list] = {}
    for *state, pid in states:
        by_process.setdefault(pid, []).append(state)
    assert max(map(len, by_process.values())) > 3
    for seen in by_process.values():
        assert all(state == seen[0] for state in seen)


def test_what_simple_code_held_is_gone_at_the_next_call(sandbox: Sandbox) -> None:
    """A list that holds itself, in a namespace that its own functions hold: memory that only a collection frees."""
    source = "kept = [list(range(3_000_000))]\nkept.append(kept)\ndef f():\n    return len(kept)"
    assert is_simple(ast.parse(source))
    for _ in range(6):  # 120 MB each, of 256
        assert sandbox.call(source, "f", {}).value == 2


def test_simple_code_that_takes_too_much_gives_the_others_a_new_process(sandbox: Sandbox) -> None:
    if sandbox.missing():
        pytest.skip("processes are not kept on a degraded machine")
    probe = as_if_simple(sandbox, PID)
    for name in ("hang", "slow memory bomb"):
        before = sandbox.call(probe, "pid", {}).value
        assert run(sandbox, HOSTILE[name][0]).error is not None
        assert sandbox.call(probe, "pid", {}).value != before
