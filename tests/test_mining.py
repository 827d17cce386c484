"""Mined traces: every call executed, verified and grounded; what is not is rejected and counted."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from test_toolhop import CONFIG, all_tasks, bench, trajectory, write
from toolhop_rows import BIRTH, rows

from agentrl.benches.toolhop import ToolHopBench
from agentrl.traces.mining import compared_literals, entity_values, example_calls, gives, grounded, words
from agentrl.traces.records import ExpertTrace


@pytest.fixture
def loaded(tmp_path: Path) -> ToolHopBench:
    return bench(write(tmp_path, rows()))


def test_a_trace_solves_every_hop(loaded: ToolHopBench) -> None:
    trace = loaded.expert_trace(all_tasks(loaded)["toolhop-1"])
    assert trace is not None and (trace.task_id, trace.source, trace.answer) == ("toolhop-1", "mined", "18")
    assert trace.calls == [
        {"name": "mayor_of", "arguments": {"city": "Brondal"}},
        {"name": "birth_year", "arguments": {"person": "Odda Fjelle"}},
        {"name": "digit_sum", "arguments": {"numbers": [1962]}},
    ]
    assert [turn.observations for turn in trace.turns] == [('"Odda Fjelle"',), ("1962",), ('{"result": [18]}',)]
    first, second, _ = trace.turns
    assert [chunk.type for chunk in first.chunks] == [
        "task_restate", "tool_selection", "required_arg_grounding", "decision_summary",
    ]  # fmt: skip
    assert first.chunks[0].text == "I need to find out: Who is the mayor of Brondal?\n"
    assert first.chunks[1].text == "mayor_of can tell me. A tool for mayor of.\n"
    assert first.chunks[2].text == "Its arguments: city is Brondal, from the question.\n"
    assert second.chunks[2].text == "Its arguments: person is Odda Fjelle, from the result of step 1.\n"


def test_traces_are_mined_once_and_the_same_every_time(loaded: ToolHopBench, tmp_path: Path) -> None:
    task = all_tasks(loaded)["toolhop-1"]
    assert loaded.expert_trace(task) is loaded.expert_trace(task)
    again = bench(tmp_path / "ToolHop.json")
    assert again.expert_trace(task) == loaded.expert_trace(task)


def test_operands_are_combined(loaded: ToolHopBench) -> None:
    trace = loaded.expert_trace(all_tasks(loaded)["toolhop-2"])
    assert trace is not None and trace.calls == [{"name": "join_letters", "arguments": {"letters": ["q", "z"]}}]


def test_an_argument_out_of_nowhere_is_rejected_and_counted(loaded: ToolHopBench) -> None:
    assert loaded.expert_trace(all_tasks(loaded)["toolhop-3"]) is None
    assert loaded._miner.outcomes == {"an argument is ungrounded": 1}


def test_what_cannot_be_mined_is_counted(tmp_path: Path) -> None:
    changed = rows()
    changed[0]["answer"] = "77"  # the last hop gives 18
    changed[1]["sub_task"] = {"What is the concatenation of q and z?": "zq"}
    changed[2]["functions"] = ["def lookup(key: syntax error"]
    broken = bench(write(tmp_path, changed))
    assert [broken.expert_trace(task) for task in all_tasks(broken).values()] == [None] * 3
    assert broken._miner.outcomes == {"the last result is not the answer": 1, "no call verifies": 2}


def test_grounded() -> None:
    visible = words(["In May 2021, Ann-Lee O'Neil had three cats, 1,250 fish and the second prize, on 2 days"])
    for value in ("ann lee", "O'Neil", ["cats", 3], {"any": "fish"}, 2, 1250, 2021.0, True, None, "", "2021-05-02"):
        assert grounded(value, visible), value
    for value in ("Bob", ["cats", 4], {"any": "dogs"}, 125, 2.5, "2021-06-02", "2021-13-02"):
        assert not grounded(value, visible), value


def test_gives() -> None:
    assert gives('{"name": "Ann Lee"}', "ann lee") and gives("[5, 12]", "12") and gives("1,250 fish", "1250")
    assert gives('"01100110"', "1100110")
    assert not gives("1200", "12")  # the scorer's substring is not enough to teach from
    assert not gives('{"error": "no record of Ann"}', "Ann") and not gives("Error: Ann", "Ann")


def test_example_calls() -> None:
    def calls(source: str, name: str) -> list[dict[str, Any]]:
        return list(example_calls(source, ast.parse(source), name))

    assert calls(BIRTH, "birth_year") == [{"person": "Odda Fjelle"}]
    source = """
def f(b, a=(1)):
    return f(b)
x = 1
f(x)
print(f('(', a=[1, {'k': None}]))
#  f(b=2)  # -> 3
# f(...)
"""
    assert calls(source, "f") == [{"b": "(", "a": [1, {"k": None}]}, {"b": 2}]
    assert calls("f = 3", "f") == []


def test_candidate_sources() -> None:
    tree = ast.parse("def f(a, b):\n    if a.lower() == 'x' and b in ('p', 3) and 1 < 2: pass")
    assert compared_literals(tree, {"a", "b"}) == {"a": ["x"], "b": ["p", 3]}
    assert entity_values('Which film by Ann de Boer is called "the end" (1962)?') == ["Ann de Boer", "the end", "1962"]


def test_every_mined_trace_of_real_rows_scores_full_marks(shared: Path) -> None:
    loaded = bench(shared / "data/toolhop/ToolHop_subset100.json", rule=CONFIG.rule)
    tasks = all_tasks(loaded)
    traces = {name: loaded.expert_trace(task) for name, task in tasks.items()}
    mined = {name: trace for name, trace in traces.items() if trace is not None}
    assert len(mined) >= 0.6 * len(tasks), loaded._miner.outcomes  # 46 of 70 when this was written
    for name, trace in mined.items():
        assert replay(loaded, tasks[name], trace) == {
            "answer_correct": 1, "solve_p": 1, "solve_r": 1, "solve_f1": 1,
        }  # fmt: skip
        visible = [tasks[name].prompt[0]["content"], json.dumps(tasks[name].tools, ensure_ascii=False)]
        for turn in trace.turns:
            assert grounded(turn.calls[0]["arguments"], words(visible))
            visible += turn.observations


def replay(loaded: ToolHopBench, task: Any, trace: ExpertTrace) -> dict[str, float]:
    environment = loaded.environment(task)
    calls = [environment.call(call["name"], call["arguments"], i) for i, call in enumerate(trace.calls)]
    assert [(call.observation,) for call in calls] == [turn.observations for turn in trace.turns]
    return loaded.score(task, trajectory(f"<answer>{trace.answer}</answer>", calls)).metrics
