"""IFBench: its rows, and verdicts of verifiers with the interface of the official package."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches import load_bench
from agentrl.core.errors import UserError
from tests.support.bench_files import (
    ifbench_row,
    write,
)
from tests.support.helpers import composed
from tests.support.side import bench_of, reply

VERIFIERS = '''
import random

class Options:
    def __init__(self, name): self.id = name
    def build_description(self, *, options=None): self.options = options or random.choice(["a/b", "c/d"])
    def get_instruction_args_keys(self): return ["options"]
    def check_following(self, value): return value.strip(" .").lower() in self.options.split("/")

class Count:
    def __init__(self, name): self.id = name
    def build_description(self, *, N=None): self.n = N
    def get_instruction_args_keys(self): return ["N"]
    def check_following(self, value): return value.split()[self.n - 1] == "ant"

class Data:
    def __init__(self, name): self.id = name
    def build_description(self): pass
    def get_instruction_args_keys(self): return []
    def check_following(self, value): raise LookupError(NLTK)

NLTK = """
****
  Resource \\x1b[93mpunkt_tab\\x1b[0m not found.
  >>> import nltk
  >>> nltk.download('punkt_tab')
"""

INSTRUCTION_DICT = {"format:options": Options, "words:nth": Count, "words:data": Data}
'''


@pytest.fixture
def verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the official package, with its interface."""
    package = tmp_path / "site" / "ifbench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "instructions_registry.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ifbench"]:
        del sys.modules[name]


@pytest.mark.usefixtures("verifiers")
def test_official_verifiers_decide_strictly_and_loosely(tmp_path: Path) -> None:
    both = {"instruction_id_list": ["format:options", "words:nth"], "kwargs": [{"options": "ant/bat"}, {"N": 2.0}]}
    file = write(tmp_path / "IFBench_test.jsonl", [ifbench_row(0), ifbench_row(1, **both)])
    bench = bench_of("ifbench", file)
    one, two = bench.tasks("test")
    assert one.prompt == [{"role": "user", "content": "Is 0 even?"}] and two.data["groups"] == {
        "family": "format+words"
    }
    names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    for task, text, values in (
        (one, "<think>no</think>Yes.", (1, 1, 1, 1)),
        (one, "My answer:\n**yes**", (0, 1, 0, 1)),
        (one, "", (0, 0, 0, 0)),
        (one, "maybe", (0, 0, 0, 0)),
        (two, "ant", (0, 0, 0.5, 0.5)),  # there is no second word, on which the verifier fails
        (two, "big ant", (0, 0, 0.5, 0.5)),
    ):
        assert bench.score(task, reply(text)).metrics == dict(zip(names, values, strict=True)), text


@pytest.mark.usefixtures("verifiers")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction_id_list": ["format:gone"]}, "'format:gone' is not a known instruction"),
        ({"kwargs": [{"options": None}]}, "format:options: options missing"),  # upstream would draw them at random
        ({"kwargs": [{"options": "a/b", "more": 1}]}, "unexpected keyword argument 'more'"),
        ({"kwargs": []}, "0 for 1 instructions"),
        ({"kwargs": [3]}, "format:options: expected an object, got int"),
        ({"prompt": ""}, "prompt: empty"),
    ],
)
def test_a_row_whose_instruction_cannot_be_checked_is_left_out(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    bench = bench_of("ifbench", write(tmp_path / "test.jsonl", [ifbench_row(0, **changes), ifbench_row(1)]))
    assert [task.id for task in bench.tasks("test")] == ["ifbench-1"]
    assert reason in bench.remarks()[0]


@pytest.mark.usefixtures("verifiers")
def test_missing_data_of_a_verifier_is_named_before_anything_is_played(tmp_path: Path) -> None:
    row = ifbench_row(0, instruction_id_list=["words:data"], kwargs=[{}])
    bench = bench_of("ifbench", write(tmp_path / "test.jsonl", [row]))
    with pytest.raises(UserError, match=r"words:data reads data .*; python -m nltk.downloader punkt_tab$"):
        bench.tasks("test")


@pytest.mark.skipif(find_spec("ifbench") is not None, reason="the official package is installed")
def test_the_official_package_is_asked_for_at_once() -> None:
    bench = load_bench(composed("algo=eval", "bench=ifbench").bench)
    with pytest.raises(UserError, match=r"needs the official package ifbench.*pip install 'ifbench @ git\+https"):
        bench.size("test")
