"""minihop_hard: generated alike from a seed, split without overlap, and the traces of each quality true."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentrl.benches import load_bench
from agentrl.benches.minihop import NAMES, RELATIONS
from agentrl.benches.minihop_hard import JOINTS, MinihopHardBench
from agentrl.benches.minihop_steps import FORMER, Shape, Step
from agentrl.benches.minihop_traces import WRONG_STEPS, right_order
from agentrl.core.bench import Task
from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.trajectory import Component, ToolCall, Trajectory
from tests.support.helpers import changed, composed


def bench_of(**values: Any) -> MinihopHardBench:
    keys = changed(composed("bench=minihop_hard").bench, train_tasks=150, test_tasks=150, **values)
    return load_bench(keys)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def bench() -> MinihopHardBench:
    return bench_of()


def play(bench: MinihopHardBench, task: Task, trace: ExpertTrace) -> list[ToolCall]:
    """The calls of a trace, executed; each must return what the trace says."""
    environment, calls = bench.environment(task), []
    for number, turn in enumerate(trace.turns):
        (call,) = turn.calls
        calls.append(environment.call(call["name"], call["arguments"], number))
        assert calls[-1].observation == turn.observations[0]
    return calls


def finished(task: Task, calls: list[ToolCall], answer: str) -> Trajectory:
    messages = [{"role": "assistant", "content": ""} for _ in calls] + [{"role": "assistant", "content": answer}]
    return Trajectory(task.id, [1], [2], [1], [0], [Component.ANSWER], messages, calls)


@pytest.mark.parametrize("quality", ["clean", "verbose", "noisy"])
def test_traces_hold_when_the_tools_really_run_and_solve_their_task(quality: str) -> None:
    bench = bench_of(trace_quality=quality)
    for task in bench.tasks("test", limit=40):
        trace = bench.expert_trace(task)
        calls = play(bench, task, trace)
        score = bench.score(task, finished(task, calls, f"<answer>{trace.answer}</answer>"))
        assert score.metrics["solve_rate"] == score.metrics["solve_r"] == 1
        renamed = sum(step.listed is not None for step in task.data["steps"])
        if quality != "noisy":
            assert len(calls) == len(task.data["steps"]) + renamed
            assert sum(call.error for call in calls) == renamed


def test_a_fifth_of_the_steps_of_noisy_traces_is_wrong_and_no_step_of_the_others() -> None:
    shares = {}
    for quality in ("clean", "verbose", "noisy"):
        bench = bench_of(trace_quality=quality, renamed=0.0)
        tasks = bench.tasks("train")
        made = sum(len(bench.expert_trace(task).turns) for task in tasks)
        shares[quality] = 1 - sum(len(task.data["steps"]) for task in tasks) / made
    assert shares["clean"] == shares["verbose"] == 0
    assert shares["noisy"] == pytest.approx(WRONG_STEPS, abs=0.04)


def test_verbose_traces_say_more_and_in_other_words() -> None:
    clean, verbose = bench_of(), bench_of(trace_quality="verbose")
    task = clean.tasks("train")[0]
    texts = [
        {chunk.text.strip() for turn in bench.expert_trace(task).turns for chunk in turn.chunks}
        for bench in (clean, verbose)
    ]
    assert not texts[0] & texts[1]
    assert sum(map(len, texts[1])) > 1.5 * sum(map(len, texts[0]))


def test_splits_share_no_shape_and_test_tasks_are_longer(bench: MinihopHardBench) -> None:
    train, test = bench.tasks("train"), bench.tasks("test")
    assert not {task.cluster for task in train} & {task.cluster for task in test}
    assert {len(task.data["steps"]) for task in train} == {3, 4, 5}
    assert {len(task.data["steps"]) for task in test} == {3, 4, 5, 6}
    assert bench.tasks("train") == train
    assert [t.prompt for t in bench_of(data_seed=1).tasks("train")] != [t.prompt for t in train]


def test_names_of_two_words_are_in_one_split_alone() -> None:
    bench = bench_of(name_words=2)
    names = [
        {name for task in bench.tasks(split) for step in task.data["steps"] for name in (*step.entities, step.result)}
        for split in ("train", "test")
    ]
    assert not names[0] & names[1]
    assert all(len(name.split()) == 2 for found in names for name in found)
    words = [{word for name in found for word in name.split()} for found in names]
    assert len(words[0] & words[1]) > 0.9 * len(NAMES)


def test_every_kind_of_difficulty_occurs_as_often_as_its_key_says() -> None:
    def steps_of(**values: Any) -> list[list[Step]]:
        return [task.data["steps"] for task in bench_of(**values).tasks("train")]

    plain = steps_of(joins=0.0, former=0.0, renamed=0.0)
    assert not any(len(step.entities) > 1 or step.former or step.listed for steps in plain for step in steps)
    for task in bench_of(joins=0.0, former=0.0, renamed=0.0).tasks("train"):  # nor do distractors have what is off
        assert all(len(tool["function"]["parameters"]["properties"]) == 1 for tool in task.tools)
    joined = steps_of(joins=1.0)
    assert all(any(step.relation in JOINTS for step in steps) for steps in joined)
    renamed = [step for steps in steps_of(renamed=0.5) for step in steps]
    assert sum(step.listed is not None for step in renamed) / len(renamed) == pytest.approx(0.5, abs=0.1)
    assert all(len(task.tools) == len(task.data["steps"]) + 5 for task in bench_of(distractors=5).tasks("train"))


def test_a_joint_needs_both_observations_and_the_chains_may_be_walked_in_several_orders() -> None:
    bench = bench_of(joins=1.0)
    orders = set()
    for task in bench.tasks("train"):
        steps = task.data["steps"]
        joint = next(step for step in steps if step.relation in JOINTS)
        assert len(joint.needs) == 2
        assert joint.entities == tuple(steps[index].result for index in joint.needs)
        order = right_order(steps, random.Random(task.id))
        assert sorted(map(id, order)) == sorted(map(id, steps))
        assert order.index(joint) > max(order.index(steps[index]) for index in joint.needs)
        orders.add(order == steps)
    assert orders == {True, False}


def test_tasks_of_one_and_two_calls_have_every_kind_of_difficulty_too() -> None:
    tasks = bench_of(train_calls=[0.5, 0.5, 0, 0, 0, 0], joins=0.5, former=0.3, renamed=0.3).tasks("train")
    assert {len(task.data["steps"]) for task in tasks} == {1, 2}
    alone = [task.data["steps"][0] for task in tasks if len(task.data["steps"]) == 1]
    assert any(step.relation in JOINTS and step.needs == () for step in alone)
    assert any(step.former for step in alone)
    assert any(step.listed for step in alone)


def test_the_optional_argument_chooses_another_result_and_a_wrong_name_is_told_the_right_one() -> None:
    bench = bench_of(former=0.5, renamed=0.5)
    former = renamed = 0
    for task in bench.tasks("train", limit=40):
        environment = bench.environment(task)
        for step in task.data["steps"]:
            call = step.call()
            assert environment.call(call["name"], call["arguments"], 0).observation == step.result
            if step.former:
                call["arguments"].pop(FORMER)
                plain = environment.call(call["name"], call["arguments"], 0)
                assert not plain.error
                assert plain.observation != step.result
                former += 1
            if step.listed is not None:
                call = step.call(step.entities)
                failed = environment.call(call["name"], call["arguments"], 0)
                assert failed.error
                assert failed.observation.endswith(f"no record of {step.entities[0]}, it is listed as {step.listed}")
                renamed += 1
    assert former > 20
    assert renamed > 20


def test_a_wrong_tool_solves_nothing(bench: MinihopHardBench) -> None:
    task = bench.tasks("train")[0]
    step = task.data["steps"][0]
    score = bench.score(task, finished(task, [ToolCall(0, "get_nothing", {}, step.result)], task.answer))
    assert score.metrics["solve_r"] == score.metrics["solve_rate"] == 0
    assert score.metrics["answer_correct"] == 1


def test_questions_by_hand() -> None:
    director, spouse, studio, birthplace = (
        next(one for one in RELATIONS if one.name == name) for name in ("director", "spouse", "studio", "birthplace")
    )
    agent = JOINTS[0]

    def step(relation: Any, former: bool = False) -> Step:
        return Step(relation, ("x",), "y", (), former, None)

    one = Shape(((director, spouse),), None, ())
    assert one.question(["Kibra"], [step(director), step(spouse, True)]) == "What is Kibra's director's former spouse?"
    two = Shape(((director, spouse), (studio,)), agent, (birthplace,))
    steps = [step(one) for one in (director, spouse, studio, agent, birthplace)]
    asked = two.question(["Kibra", "Sotav"], steps)
    assert asked == "Given Kibra's director's spouse and Sotav's studio, what is their agent's birthplace?"
    assert two.name() == "director/spouse+studio>agent/birthplace"
