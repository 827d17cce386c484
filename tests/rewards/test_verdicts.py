"""Official verdicts: hand-computed quirks, and full agreement with recorded ones where the data is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.trajectory import ToolCall
from agentrl.rewards.verdicts import (
    answer_verify,
    ftrl_correct,
    has_whole,
    judge_corrected,
    solve_scores,
    strict_correct,
    toolhop_contains,
    toolhop_correct,
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ends(final: str | None, before: str = "", role: str = "tool") -> list[dict[str, Any]]:
    return [{"role": role, "content": before}, {"role": "assistant", "content": final}]


def test_answer_verify() -> None:
    assert answer_verify("It is New York, NY.", "new york, ny")
    assert not answer_verify("NY", "New York, NY")
    assert answer_verify("1,861", "1861") and answer_verify(1861, "1861") and answer_verify({"a": "x"}, "X")
    assert answer_verify(None, "none") and answer_verify("anything", "") and answer_verify("x", "x, ")


def test_toolhop_strips_trailing_dots_and_zeros() -> None:
    assert toolhop_contains("1", "10")  # 10 -> 1
    assert toolhop_contains("no idea", "0")  # 0 -> "", in everything
    assert toolhop_contains("5.00", "5") and toolhop_contains("1,234", "1234")
    assert not toolhop_contains("1234", "1,234")  # only the text loses its commas


def test_which_texts_are_judged() -> None:
    assert toolhop_correct(ends("wrong", "Bob"), "bob") == ftrl_correct(ends("wrong", "Bob"), "bob") == 1
    assert (
        toolhop_correct(ends("wrong", "Bob", "user"), "bob") == ftrl_correct(ends("wrong", "Bob", "user"), "bob") == 0
    )
    for final in ("", None):  # no field
        assert toolhop_correct(ends(final, "Bob"), "bob") is None and ftrl_correct(ends(final, "Bob"), "bob") == 0
    assert toolhop_correct(ends(" ", "Bob"), "bob") == 1
    assert toolhop_correct([{"role": "tool", "content": "Bob"}], "bob") is None
    assert toolhop_correct([], "bob") is None and ftrl_correct([], "bob") == 0


def test_strict() -> None:
    assert strict_correct(ends("so <answer> Bob\n</answer>"), "bob") == 1
    assert strict_correct(ends("<answer>Bob</answer> no, <answer>Ann</answer>"), "bob") == 0
    assert strict_correct(ends("bob"), "bob") == strict_correct(ends("<answer>10</answer>"), "1") == 0
    assert strict_correct(ends("x", "<answer>bob</answer>"), "bob") == 0


def test_mended() -> None:
    for text, answer, right in [
        ("<answer>18.0</answer>", "18", 1), ("it is 1,800.", "1800", 1), ("180", "18", 0), ("18.5", "18", 0),
        ("0", "0", 1), ("10", "0", 0), ("<answer>Bob</answer> or Ann", "Ann", 0), ("Bobby", "bob", 0), ("x", "", 0),
        ("New  York", "new york", 1), ("", "x", 0), (None, "x", 0),
    ]:  # fmt: skip
        assert judge_corrected(ends(text), answer) == right, (text, answer)
    assert judge_corrected(ends("wrong", "Bob"), "bob") == 0 and has_whole("a b-c", "b")


def call(name: str, observation: str) -> ToolCall:
    return ToolCall(turn=0, name=name, arguments={}, observation=observation)


def test_solve_scores() -> None:
    golds = {"f": ["a1", "b2"], "g": ["c3"]}
    assert solve_scores([], golds) == (1.0, 0.0, 0.0)  # p = 0: precision 1
    # 4 calls, 2 solve: P 2/4, R 2/3, F1 2*2/(4+3)
    made = [call("f", '"b2"'), call("f", "b2"), call("g", "a1"), call("g", "is c3")]
    assert solve_scores(made, golds) == (0.5, 2 / 3, 4 / 7)
    assert solve_scores([call("f", "a1 b2")], golds)[1] == 1 / 3  # one call solves one
    assert solve_scores([call("h", "a1")], golds) == (0.0, 0.0, 0.0)
    assert golds == {"f": ["a1", "b2"], "g": ["c3"]}


def test_parity_of_answer_verify(shared: Path) -> None:
    for record in lines(shared / "parity/ftrl_answer_verify.jsonl"):
        assert answer_verify(record["predict"], record["gold"]) == record["official"]["verified"], record["case"]


def test_parity_of_both_rules_on_synthetic_endings(shared: Path) -> None:
    for record in lines(shared / "parity/toolhop_rules.jsonl"):
        messages, answer, official = record["messages"], record["answer"], record["official"]
        assert toolhop_correct(messages, answer) == official["toolhop_answer_correct"], record["case"]
        assert ftrl_correct(messages, answer) == official["ftrl_answer_correct"], record["case"]


def test_parity_of_both_rules_on_episodes(shared: Path) -> None:
    rows = json.loads((shared / "data/toolhop/ToolHop_subset100.json").read_text(encoding="utf-8"))
    for record in lines(shared / "parity/toolhop.jsonl"):
        answer = rows[record["row"]]["answer"]
        for episode, official in (
            (record["toolhop"], (record["toolhop"]["answer_correct"], record["toolhop"]["ftrl_rule"])),
            (record["ftrl"], (record["ftrl"]["toolhop_rule"], record["ftrl"]["answer_correctness"])),
        ):
            messages = [{**m, "content": m.get("parsed_content", m["content"])} for m in episode["messages"]]
            assert (toolhop_correct(messages, answer), ftrl_correct(messages, answer)) == official, record["case"]


def test_parity_of_solve_scores(shared: Path) -> None:
    rows = lines(shared / "data/ftrl/test.jsonl")
    for record in lines(shared / "parity/ftrl.jsonl"):
        row = rows[record["row"]]
        outputs = iter(m["content"] for m in record["messages"] if m["role"] == "tool")
        calls = [call(made["name"], next(outputs)) for made in record["calls"]]
        official = record["official"]
        expected = (official["solve_precision"], official["solve_rate"], official["solve_f1"])
        assert solve_scores(calls, json.loads(row["unsolved_set"])) == pytest.approx(expected, abs=1e-12), record[
            "case"
        ]
