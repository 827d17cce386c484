"""Mined traces: every call executed, verified and grounded; what is not is rejected and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.benches.execution import ToolEnvironment, plain_text
from agentrl.benches.toolhop import ToolHopBench
from agentrl.core.expert_trace import ExpertTrace
from agentrl.mining.grounding import Knowledge
from agentrl.mining.mine import NOT_FULL, UNGROUNDED, UNVERIFIED, Coverage, MinedTrace, Miner, Question, Rejection
from agentrl.mining.search import Hop, states_answer
from agentrl.mining.values import product_by_rank
from agentrl.sandbox import Sandbox
from tests.benches.test_ftrl import bench as ftrl_bench
from tests.benches.test_toolhop import all_tasks, bench, trajectory, write
from tests.support.toolhop_rows import rows


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
    assert loaded.miner.coverage.rows == 1
    again = bench(tmp_path / "ToolHop.json")
    assert again.expert_trace(task) == loaded.expert_trace(task)


def test_operands_are_combined(loaded: ToolHopBench) -> None:
    trace = loaded.expert_trace(all_tasks(loaded)["toolhop-2"])
    assert trace is not None and trace.calls == [{"name": "join_letters", "arguments": {"letters": ["q", "z"]}}]


def test_an_argument_out_of_nowhere_is_rejected_and_counted(loaded: ToolHopBench) -> None:
    task = all_tasks(loaded)["toolhop-3"]
    outcome = loaded.mine(task)
    assert isinstance(outcome, Rejection) and outcome.reason == UNGROUNDED
    assert outcome.steps[0].ungrounded == {"key": "xq-17-hidden"}
    assert loaded.expert_trace(task) is None
    summary = loaded.miner.coverage.summary()
    assert summary == {
        "rows": 1, "rows_kept": 0, "rows_verified": 1, "steps": 1, "steps_grounded": 0, "steps_ungrounded": 1,
        "steps_bridged": 0, "steps_verified": 1, "reasons": {UNGROUNDED: 1},
    }  # fmt: skip


def test_what_cannot_be_mined_is_counted(tmp_path: Path) -> None:
    changed = rows()
    changed[0]["answer"] = "77"  # the last hop gives 18
    changed[1]["sub_task"] = {"What is the concatenation of q and z?": "zq!"}
    changed[2]["functions"] = ["def lookup(key: syntax error"]
    broken = bench(write(tmp_path, changed))
    assert [broken.expert_trace(task) for task in all_tasks(broken).values()] == [None] * 3
    assert broken.miner.coverage.reasons == {NOT_FULL: 1, UNVERIFIED: 2}
    assert broken.miner.coverage.rows_verified == 1


# -- how a call is found ---------------------------------------------------------------------------------------------

SCHEMAS: dict[str, Any] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "period": {
        "type": "object",
        "properties": {part: {"type": "string", "format": "date"} for part in ("start_date", "end_date")},
    },
}
QUESTION = (
    "In July 2007, how many seats did the Serbian party 'Green Way' win, with Ann Lee and Bo Berg, from 12 towns?"
)
# name: (code of tool(a, b=None), types of a and b, the call that gives "4711")
CODE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "lowered": ("return 4711 if a.lower().strip() == 'green way' else 0", "text", "text", {"a": "Green Way"}),
    "conjunction": (
        "if a == 'Green Way' and b.startswith('2007-07'): return 4711",
        "text", "text", {"a": "Green Way", "b": "2007-07"},
    ),
    "the right branch": (
        "if a == 'Ann Lee': return 1\nelif a == 'Bo Berg' and b == 'Green Way': return 4711\nreturn 2",
        "text", "text", {"a": "Bo Berg", "b": "Green Way"},
    ),
    "a tuple as key": (
        "return {('Ann Lee', 12): 3, ('Bo Berg', 12): 4711}.get((a, b))", "text", "number", {"a": "Bo Berg", "b": 12},
    ),
    "a nested dictionary": (
        "db = {'ann lee': {'towns': 1}, 'bo berg': {'seats': 4711}}\nreturn db[a.lower()][b]",
        "text", "text", {"a": "Bo Berg", "b": "seats"},
    ),
    "records": (
        "for r in [dict(n='Ann Lee', v=5), dict(n='Bo Berg', v=4711)]:\n    if r['n'] == a: return r['v']",
        "text", "text", {"a": "Bo Berg"},
    ),
    "a range": (
        "if a['start_date'] <= '2007-07-04' <= a['end_date']: return 4711",
        "period", "text", {"a": {"start_date": "2007-01-01", "end_date": "2007-12-31"}},
    ),
    "lists": (
        "return 4711 if sorted(a) == ['Ann Lee', 'Bo Berg'] else 0", "texts", "text", {"a": ["Ann Lee", "Bo Berg"]},
    ),
    "substrings": ("return 4711 if all(w in a.lower() for w in ('seats', 'serbia')) else 0", "text", "text", {}),
    "a flag": ("if a == 'Ann Lee' and b: return 4711", "text", "flag", {"a": "Ann Lee", "b": True}),
    "an order": ("return 4711 if a > 10 and a < 100 else 0", "number", "text", {"a": 12}),
    "a helper": (
        "def norm(x): return x.replace(' ', '').lower()\nreturn 4711 if norm(a) == 'annlee' else 0",
        "text", "text", {"a": "Ann Lee"},
    ),
    "inflection": ("return 4711 if a == 'Serbia' else 0", "text", "text", {"a": "Serbia"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def miner() -> Miner:
    return Miner()


@pytest.mark.parametrize("name", CODE)
def test_conditions_are_met_one_after_the_other(name: str, miner: Miner) -> None:
    body, first, second, expected = CODE[name]
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    source = f"def tool(a, b=None):\n{lines}\n"
    step = mine_one(miner, source, {"a": SCHEMAS[first], "b": SCHEMAS[second]}).steps[0]
    assert step.problem is None and step.found is not None
    if expected:
        assert step.found.arguments == expected
    assert None not in step.found.sources.values()


def mine_one(miner: Miner, source: str, properties: dict[str, Any], answer: str = "4711") -> MinedTrace | Rejection:
    tool = {"name": "tool", "parameters": {"type": "object", "properties": properties, "required": ["a"]}}
    with Sandbox() as sandbox:
        environment = ToolEnvironment({"tool": source}, plain_text, sandbox)
        hop = Hop("How many seats?", answer, tool)
        return miner.mine(Question("t", QUESTION, answer, [hop], {"tool": source}), environment, lambda trace: True)


@pytest.mark.parametrize(
    "source",
    [
        "def tool(a): return 4711 if a == 'Novi Sad' else 0",
        "def tool(a): return 4711 if a == 'Ann Lee of Novi Sad' else 0",
        "def tool(a): return {'2007-07-09': 4711}.get(a)",  # July is known, its ninth is not
    ],
)
def test_what_the_question_does_not_say_is_no_argument(source: str, miner: Miner) -> None:
    step = mine_one(miner, source, {"a": SCHEMAS["text"]}).steps[0]
    assert step.problem == UNGROUNDED and set(step.ungrounded) == {"a"}


def test_a_hostile_tool_ends_its_own_search_only(miner: Miner) -> None:
    hostile = [
        "import builtins, json\ndef tool(a):\n    builtins.len = None\n    json.dumps = None\n    return 1",
        "import os\ndef tool(a): os._exit(0)",
        "def tool(a):\n    while a == a: pass",
        "class E(Exception):\n    def __str__(self): raise self\ndef tool(a): raise E",
    ]
    for source in hostile:
        assert mine_one(miner, source, {"a": SCHEMAS["text"]}).steps[0].problem == UNVERIFIED
    assert isinstance(mine_one(miner, "def tool(a): return 4711", {"a": SCHEMAS["text"]}), MinedTrace)


def test_hops_without_an_order_are_put_in_one(miner: Miner) -> None:
    sources = {
        "seats": "def seats(name): return {'Bo Berg': 4711}[name]",
        "leader": "def leader(party): return 'Bo Berg' if party == 'Green Way' else 'nobody'",
    }
    tools = [
        {"name": name, "parameters": {"properties": {parameter: SCHEMAS["text"]}, "required": [parameter]}}
        for name, parameter in (("seats", "name"), ("leader", "party"))
    ]
    hops = [Hop("q", answer, tool) for answer, tool in zip(("4711", "Bo Berg"), tools, strict=True)]
    text = "How many seats has the leader of the Green Way?"
    with Sandbox() as sandbox:
        environment = ToolEnvironment(sources, plain_text, sandbox)
        question = Question("t", text, "4711", hops, sources, ordered=False)
        outcome = miner.mine(question, environment, lambda trace: True)
    assert isinstance(outcome, MinedTrace)
    assert [call["name"] for call in outcome.trace.calls] == ["leader", "seats"]


def test_a_call_that_a_later_step_needs_stands_for_a_wrong_answer_in_the_data(tmp_path: Path) -> None:
    changed = rows()[:1]
    first = next(iter(changed[0]["sub_task"]))
    changed[0]["sub_task"][first] = "The Town Hall"
    mended = bench(write(tmp_path, changed))
    outcome = mended.mine(all_tasks(mended)["toolhop-1"])
    assert isinstance(outcome, MinedTrace) and [step.bridge for step in outcome.steps] == [True, False, False]
    assert outcome.trace.calls[0] == {"name": "mayor_of", "arguments": {"city": "Brondal"}}
    assert mended.miner.coverage.summary()["steps_bridged"] == 1


def test_gives() -> None:
    assert (
        states_answer('{"name": "Ann Lee"}', "ann lee")
        and states_answer("[5, 12]", "12")
        and states_answer("1,250 fish", "1250")
    )
    assert states_answer('"01100110"', "1100110")
    assert not states_answer("1200", "12")  # the scorer's substring is not enough to teach from
    assert not states_answer('{"error": "no record of Ann"}', "Ann") and not states_answer("Error: Ann", "Ann")
    assert not states_answer("No match found for Ann", "Ann")


def test_by_rank() -> None:
    assert list(product_by_rank([[1, 2], ["a", "b"]])) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert list(product_by_rank([])) == [()] and list(product_by_rank([[1], []])) == []


# -- the real rows ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_some_real_rows(shared: Path) -> None:
    loaded = ftrl_bench(shared / "data/ftrl/test.jsonl")
    tasks = {task.id: task for task in loaded.tasks("test", limit=12)}
    assert check(loaded, tasks, {"solve_p": 1, "solve_r": 1, "solve_f1": 1}).rows_kept >= 6


@pytest.mark.slow
def test_mining_toolhop(shared: Path) -> None:
    loaded = bench(shared / "data/toolhop/ToolHop_subset100.json")
    coverage = check(loaded, all_tasks(loaded), {"answer_correct": 1})
    assert coverage.steps_verified >= 0.95 * coverage.steps and coverage.rows_verified >= 0.85 * coverage.rows
    assert coverage.steps_grounded >= 0.92 * coverage.steps and coverage.rows_kept >= 0.75 * coverage.rows


@pytest.mark.slow
def test_mining_ftrl(shared: Path) -> None:
    loaded = ftrl_bench(shared / "data/ftrl/test.jsonl")
    tasks = {task.id: task for task in loaded.tasks("test")}
    coverage = check(loaded, tasks, {"solve_p": 1, "solve_r": 1, "solve_f1": 1})
    assert coverage.steps_verified >= 0.95 * coverage.steps and coverage.rows_verified >= 0.85 * coverage.rows
    assert coverage.steps_grounded >= 0.89 * coverage.steps and coverage.rows_kept >= 0.7 * coverage.rows


def check(loaded: Any, tasks: dict[str, Any], full: dict[str, float]) -> Coverage:
    """Every kept trace scores full marks and knows each argument when it makes the call; nothing is lost."""
    for task in tasks.values():
        outcome = loaded.mine(task)
        if isinstance(outcome, MinedTrace):
            metrics = replay(loaded, task, outcome.trace)
            assert {name: metrics[name] for name in full} == full
            known = Knowledge()
            known.add("question", task.prompt[0]["content"].split("Question: ", 1)[1])
            schemas = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in task.tools}
            for number, turn in enumerate(outcome.trace.turns, 1):
                for name, value in turn.calls[0]["arguments"].items():
                    assert known.source(value, schemas[turn.calls[0]["name"]][name]), (task.id, name, value)
                known.add(f"step {number}", turn.observations[0])
    coverage: Coverage = loaded.miner.coverage
    assert coverage.rows == len(tasks) == coverage.rows_kept + coverage.reasons.total()
    return coverage


def replay(loaded: Any, task: Any, trace: ExpertTrace) -> dict[str, float]:
    environment = loaded.environment(task)
    calls = [environment.call(call["name"], call["arguments"], i) for i, call in enumerate(trace.calls)]
    assert [(call.observation,) for call in calls] == [turn.observations for turn in trace.turns]
    metrics: dict[str, float] = loaded.score(task, trajectory(f"<answer>{trace.answer}</answer>", calls)).metrics
    return metrics
