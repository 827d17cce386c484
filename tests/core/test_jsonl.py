"""Lines of JSON as users and models write them, and what reads them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from agentrl.benches import load_bench
from agentrl.benches.bfcl.data import read_lines
from agentrl.benches.hif.files import rows_of
from agentrl.commands.score import read_lines as transcripts
from agentrl.config.compose import compose
from agentrl.core.errors import first_line
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.jsonl import explain_json, numbered_lines
from agentrl.endpoint.messages import read_arguments
from agentrl.judges.form import Unparsable
from agentrl.judges.rubrics import load_rubrics, parse_reply
from agentrl.traces.files import read_traces, to_line
from tests.support.bench_files import bench_keys

SEPARATORS = "one\u2028two\x85three"  # line separators of Unicode, which JSON writes as they are
LONG = "1" * 5000  # a number that json.loads refuses with a plain ValueError
DEEP = "[" * 100_000


def test_a_line_ends_at_a_line_feed_alone() -> None:
    text = f'{{"a": "{SEPARATORS}"}}\n  \n{{}}'
    assert list(numbered_lines(text)) == [(1, f'{{"a": "{SEPARATORS}"}}'), (3, "{}")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{oops", "column 2, Expecting"),
        ("[\n1,\n", "line 3, column 1"),
        (LONG, "number is too long"),
        (DEEP, "too deeply"),
    ],
    ids=["syntax", "below", "digits", "depth"],
)
def test_what_is_wrong_with_a_text(text: str, reason: str) -> None:
    with pytest.raises((ValueError, RecursionError)) as caught:
        json.loads(text)
    assert reason in explain_json(caught.value)


def test_traces_hold_whatever_a_tool_returned(tmp_path: Path) -> None:
    turn = TraceTurn((Chunk("other", "I look.\n"),), ({"name": "find", "arguments": {"x": SEPARATORS}},), (SEPARATORS,))
    trace = ExpertTrace("t", (turn,), SEPARATORS, source="mined")
    file = tmp_path / "traces.jsonl"
    file.write_text(to_line(trace), encoding="utf-8")
    assert read_traces(file) == {"t": trace}


def test_files_with_separators_of_unicode_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": SEPARATORS}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_lines(file) == [{"a": SEPARATORS}] == [row.content for row in rows_of(file)]


@pytest.mark.slow
def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    """Editors and spreadsheets on Windows put one before the text of a file in UTF-8."""
    benches = {name: compose([f"bench={name}", *_own(keys, name)]).bench for name, keys in bench_keys(tmp_path).items()}
    for file in tmp_path.rglob("*.json*"):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    for name, bench in benches.items():
        assert load_bench(bench).tasks("test"), name
    turn = TraceTurn((Chunk("other", "I look.\n"),), ({"name": "find", "arguments": {}},), ("x",))
    file = tmp_path / "file"
    file.write_text(to_line(ExpertTrace("t", (turn,), "x", source="mined")), encoding="utf-8-sig")
    assert list(read_traces(file)) == ["t"]
    file.write_text('{"id": "t"}\n', encoding="utf-8-sig")
    assert list(transcripts(file)) == [(1, {"id": "t"}, None)]
    file.write_text("Grade it.", encoding="utf-8-sig")
    assert set(load_rubrics(str(file), str(file)).values()) == {"Grade it."}


def _own(keys: list[str], name: str) -> list[str]:
    return [key.replace(f"{name}.", "bench.", 1) for key in keys]


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    (key,) = bench_keys(tmp_path)["ftrl"]
    rows = [json.loads(line) for line in Path(key.partition("=")[2], "test.jsonl").read_text().splitlines()]
    file = tmp_path / "rows.PARQUET"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert len(load_bench(compose(["bench=ftrl", f"bench.path={file}"]).bench).tasks("test")) == len(rows)


@pytest.mark.parametrize("text", [LONG, DEEP], ids=["digits", "depth"])
def test_what_a_model_writes_never_ends_a_run(text: str) -> None:
    assert read_arguments(text) == text
    with pytest.raises(Unparsable):
        parse_reply(f'{{"score": {text}')


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\nwhat\nwhere")) == "what"
    assert first_line(KeyError()) == "KeyError"
