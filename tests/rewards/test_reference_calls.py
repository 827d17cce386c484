"""What rewards compare calls with is the bench's ground truth: no file of traces changes it, no task lacks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches import load_bench
from agentrl.benches.minihop import expert_trace
from agentrl.config.benches import CustomBench
from agentrl.core.bench import Bench, Task, reference_calls
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.core.trajectory import ToolCall
from agentrl.rewards.turns import known_calls, turn_rewards
from tests.benches.test_ftrl import bench as ftrl_bench
from tests.benches.test_ftrl import row as ftrl_row
from tests.benches.test_ftrl import write as write_ftrl
from tests.benches.test_toolhop import all_tasks, bench, write
from tests.project.test_extending import BENCH as SUMS
from tests.rewards.test_matching import call, config, episode
from tests.rollout.test_rollout import expert_script
from tests.support.bfcl_play import bench_of, gold_steps, needs_bfcl
from tests.support.helpers import composed, make_trainer, rolled_batch, small
from tests.support.toolhop_rows import rows


def teacher(task: Task, own: ExpertTrace) -> ExpertTrace:
    """As a teacher may solve a task: it calls a wrong tool first, and repeats every call."""
    failed = TraceTurn((), (call("no_such_tool", {"x": 1}),), ("error",))
    turns = [
        TraceTurn((), (one, one), (seen, seen))
        for t in own.turns
        for one, seen in zip(t.calls, t.observations, strict=True)
    ]
    return ExpertTrace(task.id, (failed, *turns), own.answer, source="teacher")


def played(trace: ExpertTrace) -> Any:
    """The episode that makes the calls of a trace and answers."""
    turns = [[(one["name"], one["arguments"]) for one in turn.calls] for turn in trace.turns]
    return replace(episode(*turns, f"<answer>{trace.answer}</answer>"), calls=trace.executed_calls())


def rewarded(loaded: Bench, task: Task, trace: ExpertTrace, reward: str = "matching") -> float:
    references = reference_calls(loaded, task)
    return sum(turn_rewards(played(trace), references, task.answer, config(reward), task.golds))


@pytest.mark.parametrize("reward", ["matching", "ot", "toolrl"])
def test_a_teachers_detours_raise_no_reward(reward: str) -> None:
    loaded = load_bench(composed().bench)
    task = loaded.tasks("train", limit=1)[0]
    right = expert_trace(task)
    detours = teacher(task, right)
    before = rewarded(loaded, task, right, reward), rewarded(loaded, task, detours, reward)
    assert before[0] > before[1]
    if reward == "matching":  # 1 a call and 1 for the answer; the repeats of a turn halve it
        assert before == (len(right.turns) + 1.0, len(right.turns) / 2 + 1.0)


def test_traces_of_a_file_change_no_rollouts_reward(tmp_path: Path) -> None:
    trainer = make_trainer(small("algo=grpo", "algo.kl_coef=0"), tmp_path, expert_script)
    rolled_batch(trainer)
    plain = trainer._turn_rewards
    trainer.expert_trace = lambda task: teacher(task, expert_trace(task))
    rolled_batch(trainer)
    assert trainer._turn_rewards == plain
    trainer.expert_trace = lambda task: None  # and neither does having none
    rolled_batch(trainer)
    assert trainer._turn_rewards == plain and max(sum(rewards) for rewards in plain) >= 2


def test_luffys_expert_earns_nothing_for_what_its_teacher_repeated(tmp_path: Path) -> None:
    trainer = make_trainer(small("algo=luffy"), tmp_path, expert_script)
    task = trainer.tasks[0]
    right = expert_trace(task)
    assert trainer._expert_return(task) == len(right.turns) + 1.0
    trainer.expert_trace = lambda task: teacher(task, right)
    assert trainer._expert_return(task) == len(right.turns) / 2 + 1.0


def test_toolhop_knows_the_calls_of_rows_that_have_no_trace(tmp_path: Path) -> None:
    loaded = bench(write(tmp_path, rows()))
    tasks = all_tasks(loaded)
    assert reference_calls(loaded, tasks["toolhop-1"]) == loaded.expert_trace(tasks["toolhop-1"]).calls
    secret = tasks["toolhop-3"]  # its call is verified, but its argument stands nowhere
    assert loaded.expert_trace(secret) is None
    assert reference_calls(loaded, secret) == [call("lookup", {"key": "xq-17-hidden"})]
    right, wrong = (episode([("lookup", {"key": key})], "Veltra") for key in ("xq-17-hidden", "x"))
    earned = [turn_rewards(one, reference_calls(loaded, secret), "Veltra", config()) for one in (right, wrong)]
    assert earned == [[1.0, 1.0], [pytest.approx(2 / 3), 1.0]]


def test_a_call_that_nobody_knew_is_right_where_it_returns_the_steps_result(tmp_path: Path) -> None:
    changed = rows()
    changed[2]["functions"] = [changed[2]["functions"][0].replace("xq-17-hidden", "unheard-of")]
    loaded = bench(write(tmp_path, changed))
    task = all_tasks(loaded)["toolhop-3"]
    loaded.mine(task)
    references = [{"name": "lookup", "result": "Veltra"}]
    found = ToolCall(0, "lookup", {"key": "q"}, '"Veltra"')
    assert known_calls(references, [found]) == [call("lookup", {"key": "q"})]
    for miss in (replace(found, observation="Veltran"), replace(found, name="other"), replace(found, error=True)):
        assert known_calls(references, [miss]) == []
    # a call stands for one reference, however often it is made
    assert known_calls([*references, *references], [found, found]) == [call("lookup", {"key": "q"})]
    assert known_calls([call("lookup", {"key": "q"}), *references], [found]) == [call("lookup", {"key": "q"})]
    twice = replace(
        episode([("lookup", {"key": "q"})], [("lookup", {"key": "q"})]), calls=[found, replace(found, turn=1)]
    )
    assert turn_rewards(twice, references, "", config()) == [1.0, 0.0]


@pytest.mark.slow
def test_every_verified_call_of_toolhops_rows_earns_1(shared: Path) -> None:
    loaded = bench(shared / "data/toolhop/ToolHop_subset100.json")
    traceless = [task for task in loaded.tasks("train") if loaded.expert_trace(task) is None]
    assert traceless
    for task in traceless:
        steps = [step for step in loaded.mine(task).steps if step.found is not None]
        assert steps or len(loaded.mine(task).steps) == 1, task.id
        rollout = episode(*[[(step.hop.tool["name"], step.found.arguments)] for step in steps], "no idea")
        rewards = turn_rewards(rollout, reference_calls(loaded, task), "~", config())
        assert rewards == [*[1.0] * len(steps), 0.0], task.id


def test_ftrls_ground_truth_comes_before_what_is_mined(tmp_path: Path) -> None:
    truth = [{"name": "people", "parameters": {"city": "x"}}]
    loaded = ftrl_bench(write_ftrl(tmp_path / "test.jsonl", [ftrl_row(ground_truth=truth)]))
    [task] = loaded.tasks("test")
    assert reference_calls(loaded, task) == [call("people", {"city": "x"})]
    assert task.id not in loaded._mined
    plain = ftrl_bench(write_ftrl(tmp_path / "plain.jsonl", [ftrl_row()]))
    [task] = plain.tasks("test")
    assert {one["name"] for one in reference_calls(plain, task)} == set(task.golds)


@needs_bfcl
def test_bfcls_references_are_its_gold_calls() -> None:
    loaded = bench_of("bench.categories=[multi_turn]")
    for task in loaded.tasks("train", limit=12, seed=1):
        gold = [call(name, given) for turn in gold_steps(task.data["entry"]) for name, given in turn]
        assert reference_calls(loaded, task) == gold
    memory = bench_of("bench.categories=[memory_kv]", "bench.memory=evidence")
    task = next(task for task in memory.tasks("test") if "finance" in task.id)
    assert [one["name"] for one in reference_calls(memory, task)] == [
        "archival_memory_list_keys",
        "archival_memory_retrieve",
    ]


def test_a_bench_of_ones_own_keeps_its_own_references(tmp_path: Path) -> None:
    loaded = load_bench(CustomBench(name="custom", path=str(SUMS), options={"tasks": 4}))
    task = loaded.tasks("train")[0]
    own = loaded.expert_trace(task)
    assert reference_calls(loaded, task) == own.calls == [call("add", task.data)]
    loaded.reference_calls = lambda task: [call("add", {"a": 1, "b": 2})]
    assert reference_calls(loaded, task) == [call("add", {"a": 1, "b": 2})]
