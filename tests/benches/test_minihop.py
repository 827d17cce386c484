"""minihop: generated alike from a seed, split without overlap, and its expert traces true."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agentrl.benches import load_bench
from agentrl.benches.minihop import NAMES, RELATIONS, chains, count_solved, expert_trace, is_held_out
from agentrl.core.trajectory import Component, ToolCall, Trajectory
from tests.support.helpers import composed


@pytest.fixture(scope="module")
def bench():
    return load_bench(composed("bench.train_tasks=300", "bench.test_tasks=300").bench)


def finished(task, calls, answer):
    """A trajectory with the given calls, one a turn, and a final text."""
    messages = [{"role": "assistant", "content": ""} for _ in calls] + [{"role": "assistant", "content": answer}]
    return Trajectory(task.id, [1], [2], [1], [0], [Component.ANSWER], messages, calls)


def test_the_same_seed_gives_the_same_tasks(bench):
    assert bench.tasks("train") == bench.tasks("train")
    other = load_bench(composed("bench.train_tasks=300", "bench.data_seed=1").bench)
    assert [t.prompt for t in other.tasks("train")] != [t.prompt for t in bench.tasks("train")]
    assert bench.tasks("test", limit=10, seed=3) == bench.tasks("test", limit=10, seed=3)
    assert len(bench.tasks("test", limit=10)) == 10


def test_test_chains_and_lengths_never_occur_in_training(bench):
    train = {tuple(task.data["chain"]) for task in bench.tasks("train")}
    test = {tuple(task.data["chain"]) for task in bench.tasks("test")}
    assert not {c for c in train if len(c) > 1} & {c for c in test if len(c) > 1}
    assert {len(c) for c in train} == {1, 2, 3}
    assert {len(c) for c in test} == {1, 2, 3, 4}
    for hops in (2, 3, 4):
        share = sum(map(is_held_out, chains(hops))) / len(list(chains(hops)))
        assert 0.25 < share < 0.45


def test_chains_are_typed_and_names_distinct():
    assert len(set(NAMES)) == 400
    for chain in chains(3):
        assert len(set(chain)) == 3
        assert all(one.target == two.source for one, two in pairwise(chain))
    assert len(list(chains(1))) == len(RELATIONS)


def test_expert_traces_hold_when_the_tools_really_run(bench):
    for task in bench.tasks("test", limit=40):
        environment, trace = bench.environment(task), expert_trace(task)
        calls = []
        for number, turn in enumerate(trace.turns):
            call = environment.call(turn.calls[0]["name"], turn.calls[0]["arguments"], number)
            assert not call.error
            assert call.observation == turn.observations[0]
            assert 4 <= len(turn.chunks) <= 5
            calls.append(call)
        score = bench.score(task, finished(task, calls, f"<answer>{trace.answer}</answer>"))
        assert set(score.metrics.values()) == {1.0}
        assert len(task.tools) == len(task.data["chain"]) + 2


def test_wrong_tools_and_arguments_are_observations(bench):
    task = bench.tasks("test")[0]
    environment = bench.environment(task)
    tool = f"get_{task.data['chain'][0]}"
    parameter = next(iter(expert_trace(task).turns[0].calls[0]["arguments"]))
    for name, arguments in ((tool, {parameter: "Nobody"}), (tool, {}), (tool, {"x": 1}), ("get_nothing", {})):
        call = environment.call(name, arguments, 0)
        assert call.error
        assert call.observation.startswith(f"an error occured when call {name}")


def test_scores_by_hand(bench):
    task = next(t for t in bench.tasks("test") if len(t.data["chain"]) == 2)
    first, second = (t.calls[0] for t in expert_trace(task).turns)
    middle, answer = task.data["entities"][1:]
    one = ToolCall(0, first["name"], first["arguments"], middle)
    two = ToolCall(1, second["name"], second["arguments"], answer)
    wrong = ToolCall(1, second["name"], {}, "an error occured when call x: y", error=True)
    # One of two hops in two calls: P = 1/2, R = 1/2, F1 = 2*1/(2+2).
    score = bench.score(task, finished(task, [one, wrong], f"<answer>{answer}</answer>")).metrics
    assert score == {"solve_rate": 0, "answer_correct": 1, "solve_p": 0.5, "solve_r": 0.5, "solve_f1": 0.5}
    # Both hops and one repetition: P = 2/3, R = 1, F1 = 2*2/(3+2).
    score = bench.score(task, finished(task, [one, one, two], "<answer>Somebody</answer>")).metrics
    assert score == pytest.approx(
        {"solve_rate": 0, "answer_correct": 0, "solve_p": 2 / 3, "solve_r": 1, "solve_f1": 0.8}
    )
    # No call: P is 1 by FTRL's convention.
    assert bench.score(task, finished(task, [], "")).metrics["solve_p"] == 1.0
    assert count_solved(task, [two]) == 1


def test_a_system_prompt_forbids_a_tool_that_the_answer_needs_or_one_that_distracts() -> None:
    plain = load_bench(composed("bench.train_tasks=300").bench).tasks("train")
    bench = load_bench(composed("bench.train_tasks=300", "bench.forbid=0.3").bench)
    ruled = bench.tasks("train")
    conflicts = [task for task in ruled if task.data["kind"] == "conflict"]
    assert len(conflicts) / 300 == pytest.approx(0.3, abs=0.08)
    for before, task in zip(plain, ruled, strict=True):  # a rule changes nothing else about a task
        assert task.prompt[1:] == before.prompt
        assert task.tools == before.tools
        assert task.prompt[0] == {"role": "system", "content": f"Never call {task.data['forbidden']}."}
        needed = {f"get_{name}" for name in task.data["chain"]}
        assert (task.data["forbidden"] in needed) == (task.data["kind"] == "conflict")
        calls = expert_trace(task).executed_calls()
        score = bench.score(task, finished(task, calls, f"<answer>{task.answer}</answer>"))
        assert score.metrics["solve_rate"] == 1
        assert score.metrics["kept_rule"] == float(task.data["kind"] == "aligned")
        assert score.groups["kind"] == task.data["kind"]
        trace = bench.expert_trace(task)  # an expert who keeps the rule has no solution of a conflict
        assert trace == (expert_trace(task) if task.data["kind"] == "aligned" else None)
        assert bench.reference_calls(task) == expert_trace(task).calls
    assert "kept_rule" not in bench.score(plain[0], finished(plain[0], [], "")).metrics
