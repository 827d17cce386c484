"""agentrl score gives the official verdicts on recorded transcripts, and explains bad lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentrl.chat.transcripts import pair_calls_with_outputs, parse_text, toolhop_content
from agentrl.commands.score import main, print_summary
from agentrl.config.compose import compose
from agentrl.core.errors import UserError
from tests.support.toolhop_rows import rows

Line = dict[str, Any]


def lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(tmp_path: Path, bench: str, file: Path, records: list[Line], *overrides: str) -> list[Line]:
    """Return what the command writes for `records`."""
    transcripts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    transcripts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    out.unlink(missing_ok=True)
    arguments = [f"bench={bench}", f"bench.path={file}", f"transcripts={transcripts}", f"out={out}", *overrides]
    assert main(arguments) == 0
    return lines(out)


# -- parity ----------------------------------------------------------------------------------------------------------


def test_every_recorded_ftrl_verdict(shared: Path, tmp_path: Path) -> None:
    records = lines(shared / "parity/ftrl.jsonl")
    given = [{key: record[key] for key in ("row", "case", "messages")} for record in records]
    scored = score(tmp_path, "ftrl", shared / "data/ftrl/test.jsonl", given)
    for record, line in zip(records, scored, strict=True):
        official = record["official"]
        assert line["case"] == record["case"] and line["row"] == record["row"] and "reason" not in line
        assert line["metrics"] == {
            "solve_p": official["solve_precision"],
            "solve_r": official["solve_rate"],
            "solve_f1": official["solve_f1"],
        }, record["case"]


@pytest.mark.parametrize(
    ("episode", "rule", "verdict"),
    [
        ("toolhop", "toolhop", "answer_correct"),
        ("toolhop", "ftrl", "ftrl_rule"),
        ("ftrl", "toolhop", "toolhop_rule"),
        ("ftrl", "ftrl", "answer_correctness"),
    ],
)
def test_every_recorded_toolhop_verdict(shared: Path, tmp_path: Path, episode: str, rule: str, verdict: str) -> None:
    records = lines(shared / "parity/toolhop.jsonl")
    file = shared / "data/toolhop/ToolHop_subset100.json"
    given = [{"row": record["row"], "messages": record[episode]["messages"]} for record in records]
    runs = [score(tmp_path, "toolhop", file, given, f"bench.rule={rule}")]
    if episode == rule:  # only raw texts, for the parser that goes with the rule
        for record in given:
            record["messages"] = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
        runs.append(score(tmp_path, "toolhop", file, given, f"bench.rule={rule}"))
    for scored in runs:
        for record, line in zip(records, scored, strict=True):
            expected, metrics = record[episode], line["metrics"]
            assert metrics["answer_correct"] == expected[verdict], record["case"]
            assert ("reason" in line) == (expected[verdict] is None)
            assert (metrics["calls"], metrics["error_calls"]) == (expected["calls"], expected["error_calls"])


def test_every_recorded_synthetic_ending(shared: Path, tmp_path: Path) -> None:
    records = lines(shared / "parity/toolhop_rules.jsonl")
    file = tmp_path / "synthetic.json"
    template = rows()[0]
    file.write_text(json.dumps([template | {"id": r["index"], "answer": r["answer"]} for r in records]))
    for rule, verdict in (("toolhop", "toolhop_answer_correct"), ("ftrl", "ftrl_answer_correct")):
        given = [{"id": r["index"], "messages": r["messages"]} for r in records]
        for record, line in zip(records, score(tmp_path, "toolhop", file, given, f"bench.rule={rule}"), strict=True):
            assert line["metrics"]["answer_correct"] == record["official"][verdict], record["case"]


# -- the parsers -----------------------------------------------------------------------------------------------------


def block(name: Any = "f", arguments: Any = None) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments or {}})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("plain ", "plain", []),
        (f" say {block()}\n{block('g')}", "say", ["f", "g"]),
        (f"{block()} between {block('g')}", "", ["f"]),  # text between blocks drops the next
        (block("f").removesuffix("</tool_call>"), "", ["f"]),  # unclosed
        (f"<think>{block()}</think>", "<think>", ["f"]),
        (f"</tool_call>{block()}", "</tool_call>", ["f"]),
        ("<tool_call>\n{broken\n</tool_call>", "<tool_call>\n{broken\n</tool_call>", []),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),  # no arguments
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', None, []),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', None, []),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', None, []),
        ('<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>', "", ["f"]),
        ('<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>', "", ["f"]),  # lstrip takes both tags
        ('<tool_call>cat{"name": "f", "arguments": {}}</tool_call>', "", ["f"]),  # and these letters
        ("<tool_call>" + "[" * 100_000, None, []),
    ],
)
def test_ftrl_parser(text: str, content: str | None, names: list[str]) -> None:
    parsed, calls = parse_text(text)
    assert [name for name, _ in calls] == names
    assert parsed == (text.strip() if content is None else content)


def test_toolhop_content() -> None:
    assert toolhop_content(" a ") == "a" and toolhop_content("") == ""
    assert toolhop_content(block()) is None and toolhop_content("\n" + block()) == ""
    assert toolhop_content("so <tool_call> broken") == "so"


def test_calls_are_paired_with_outputs() -> None:
    twice = {"role": "assistant", "content": block("f") + block("g", {"a": 1})}
    outputs = [{"role": "tool", "content": "1"}, {"role": "tool", "content": None}]
    calls, unexecuted = pair_calls_with_outputs([twice, *outputs, {"role": "assistant", "content": "done"}])
    assert [(c.name, c.arguments, c.observation, c.turn) for c in calls] == [("f", {}, "1", 0), ("g", {"a": 1}, "", 0)]
    assert unexecuted == 0 and pair_calls_with_outputs([twice]) == ([], 2)
    parsed = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "h", "arguments": "{}"}}]}
    assert pair_calls_with_outputs([parsed, outputs[0]])[0][0].name == "h"
    with pytest.raises(ValueError, match="message 0 makes 2 calls, but 1 tool outputs"):
        pair_calls_with_outputs([twice, outputs[0]])
    two = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    said = [{"role": "tool", "tool_call_id": name, "content": name.upper()} for name in "ab"]
    in_order = pair_calls_with_outputs([{"role": "assistant", "tool_calls": two}, *said])[0]
    assert [(c.name, c.observation) for c in in_order] == [("a", "A"), ("b", "B")]
    with pytest.raises(ValueError, match="call 'a' of message 0 is followed by the output of 'b'"):
        # the official code asserts this
        pair_calls_with_outputs([{"role": "assistant", "tool_calls": two}, *said[::-1]])
    assert pair_calls_with_outputs([]) == pair_calls_with_outputs([{"role": "user", "content": "?"}]) == ([], 0)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ToolHop.json"
    path.write_text(json.dumps(rows()), encoding="utf-8")
    return path


def final(text: str) -> list[Line]:
    return [{"role": "assistant", "content": text}]


def test_rows_ids_and_summary(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"row": 0, "messages": final("<answer>18</answer>"), "case": "a", "metrics": {"old": 1}},
        {"id": 2, "messages": final("zq")},
        {"id": "toolhop-2", "messages": final("")},
    ]
    scored = score(tmp_path, "toolhop", file, records, "bench.rule=toolhop")
    assert [line["metrics"]["answer_correct"] for line in scored] == [1, 0, None]
    assert scored[0] == records[0] | {"metrics": {"answer_correct": 1, "calls": 0, "error_calls": 0}}
    assert "no final text" in scored[2]["reason"]
    shown = capsys.readouterr().out
    assert "answer_correct   0.3333 [" in shown and "1 without a verdict counted as 0" in shown
    scored = score(tmp_path, "toolhop", file, records, "bench.rule=ftrl")
    assert [line["metrics"]["answer_correct"] for line in scored] == [1, 0, 0]


def test_suites_of_different_size_have_a_mean_of_their_means(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"extraction": (4, 2), "hijacking": (2, 0), "helpful": (6, 6)}
    records = [
        {"suite": suite, "row": row, "metrics": {"passed": float(row < passed)}}
        for suite, (size, passed) in sizes.items()
        for row in range(size)
    ]
    print_summary(records, Console(soft_wrap=True, highlight=False, markup=False))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("passed           0.6667 [") and shown[1].endswith("n=12")  # 8 of 12
    assert shown[2].strip().startswith("0.5000 [") and "of 3 suites" in shown[2]  # (0.5 + 0 + 1) / 3


def test_half_a_surrogate_pair_goes_through(file: Path, tmp_path: Path) -> None:
    [line] = score(tmp_path, "toolhop", file, [{"row": 0, "messages": final("18 \ud800"), "é": "\U0001f600"}])
    assert line["messages"] == final("18 \ud800") and line["é"] == "\U0001f600"
    assert "é" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_bad_lines_are_named_and_nothing_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["bench=toolhop", f"bench.path={file}"])
    monkeypatch.setattr("agentrl.commands.score.compose", lambda _: config)  # once for all lines
    good = json.dumps({"row": 0, "messages": final("18")})
    transcripts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    arguments = ["bench=toolhop", f"bench.path={file}", f"transcripts={transcripts}", f"out={out}"]
    for bad, reason in [
        (b'{"row": 0', "line 2: not complete JSON (column 10"),
        (b"[1]", "line 2: not a JSON object"),
        (b'{"row": 0, "x": "\xff"}', "line 2: not UTF-8 (byte 17)"),
        (b'{"row": 3, "messages": []}', "line 2: row 3 is not in the file, which has rows 0 to 2"),
        (b'{"row": true, "messages": []}', "line 2: row True"),
        (b'{"id": "x", "messages": []}', "line 2: id 'x' is not in the file"),
        (b'{"messages": []}', 'line 2: "row" and "id" are missing'),
        (b'{"row": 0}', 'line 2: "messages" is missing'),
        (b'{"row": 0, "messages": [{"role": "robot"}]}', "line 2: the role of message 0 is not one of"),
        (b'{"row": 0, "messages": [{"role": "tool", "content": 3}]}', "line 2: the content of message 0"),
        (b'{"row": 0, "messages": [{"role": "assistant", "content": [{"text": "a"}]}]}', "content of message 0"),
        (b'{"row": 0, "messages": [{"role": "assistant", "parsed_content": 3}]}', "the parsed_content of message 0"),
        (b'{"row": ' + b"1" * 5000 + b"}", "line 2: not complete JSON (a number is too long"),
        (b"[" * 100_000, "line 2: not complete JSON (nested too deeply"),
    ]:
        transcripts.write_bytes(good.encode() + b"\n" + bad + b"\n\n" + good.encode())
        with pytest.raises(UserError) as caught:
            main(arguments)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
        assert not out.exists() and not list(tmp_path.glob("*.part"))
    transcripts.write_text("\n")
    with pytest.raises(UserError, match="holds no transcript"):
        main(arguments)


def test_the_command_refuses_wrong_keys(file: Path, tmp_path: Path) -> None:
    transcripts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    transcripts.write_text(json.dumps({"row": 0, "messages": final("18")}))
    given = {"bench": "toolhop", "bench.path": file, "transcripts": transcripts, "out": out}
    for change, reason in [
        ({"out": file}, "exists already"),
        ({"out": ""}, "out=... is missing"),
        ({"out": tmp_path / "no" / "out"}, "its directory must exist and be writable"),
        ({"transcripts": tmp_path / "no"}, "cannot read it"),
        ({"bench": "minihop", "bench.path": None}, "no official scores"),
        ({"bench.path": tmp_path / "no"}, "no such file"),
        ({"bench.rule": "best"}, "bench.rule=best"),
        ({"bench.scenario": "direct"}, ""),
    ]:
        arguments = [f"{key}={value}" for key, value in (given | change).items() if value is not None]
        if reason:
            with pytest.raises(UserError) as caught:
                main(arguments)
            assert reason in str(caught.value)
        else:
            assert main(arguments) == 0


def test_no_torch_is_imported(file: Path, tmp_path: Path) -> None:
    import subprocess

    transcripts = tmp_path / "in.jsonl"
    transcripts.write_text(json.dumps({"row": 0, "messages": final("18")}))
    code = (
        "import sys; from agentrl.commands.score import main; "
        f"main(['bench=toolhop', 'bench.path={file}', 'transcripts={transcripts}', 'out={tmp_path}/out.jsonl']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_unexecuted_calls_count_as_unsolved(shared: Path, tmp_path: Path) -> None:
    file = shared / "data/ftrl/test.jsonl"
    record = lines(shared / "parity/ftrl.jsonl")[0]  # one call, one gold, solved
    more = [*record["messages"][:2], {"role": "assistant", "content": block() + block()}]
    [line] = score(tmp_path, "ftrl", file, [{"row": 0, "messages": more}])
    # 3 calls, 1 of 1 golds: P 1/3, R 1, F1 2/(3+1)
    assert line["metrics"] == {"solve_p": 1 / 3, "solve_r": 1.0, "solve_f1": 0.5}
    assert "2 calls of the last turn have no output" in line["reason"]
