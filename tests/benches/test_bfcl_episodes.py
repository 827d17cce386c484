"""BFCL: episodes that share nothing and survive their child; tasks, traces, memory and web search."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import site
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentrl.benches.bfcl.data import MEMORY, MULTI_TURN
from agentrl.benches.bfcl.environment import STEP_LIMIT, BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.simulator import Simulator, TookTooLong
from agentrl.benches.bfcl.verdicts import FORCE_TERMINATED, check, judge, turns_of
from agentrl.core.bench import Conversation
from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.rollout.preparation import prepare_tasks
from tests.support.bfcl_play import bench_of, gold_steps, needs_bfcl, play_gold

pytestmark = needs_bfcl


@pytest.fixture(scope="module")
def bench():
    return bench_of("bench.categories=[multi_turn]")


# -- episodes ----------------------------------------------------------------------------------------------------------


def play_together(bench, entries, seed):
    """Episodes in a random interleaving; returns the messages of each."""
    chance = random.Random(seed)
    running = {e.id: play_gold(e, BfclEnvironment(e, SimulatedApis(bench.simulator, e.payload))) for e in entries}
    messages = {}
    while running:
        key = chance.choice(list(running))
        try:
            messages[key] = next(running[key])
        except StopIteration:
            del running[key]
    return messages


def test_gold_episodes_played_together_share_nothing(bench):
    entries = [entry for category in MULTI_TURN for entry in bench.entries(category)[:3]]
    messages = play_together(bench, entries, seed=0)
    for entry in entries:
        alone = play_together(bench, [entry], seed=1)[entry.id]
        assert messages[entry.id] == alone, "another episode showed through"
        assert judge(bench.simulator, entry, turns_of(alone)) == (1.0, None)


def test_two_episodes_of_one_task_are_apart(bench):
    task = next(t for t in bench.tasks("test") + bench.tasks("train") if t.id == "multi_turn_base_0")
    first, second = bench.environment(task), bench.environment(task)
    assert first.call("mkdir", {"dir_name": "mine"}, 0).observation == "None"
    assert "mine" in first.call("ls", {}, 0).observation
    assert "mine" not in second.call("ls", {}, 0).observation


@pytest.mark.slow
def test_all_gold_trajectories_are_valid_64_at_a_time(bench):
    entries = [entry for category in MULTI_TURN for entry in bench.entries(category)]
    random.Random(0).shuffle(entries)
    assert len(entries) == 800
    for start in range(0, 800, 64):
        batch = entries[start : start + 64]
        messages = play_together(bench, batch, seed=start)
        for entry in batch:
            assert judge(bench.simulator, entry, turns_of(messages[entry.id])) == (1.0, None), entry.id


def test_functions_held_out_are_announced_when_they_come(bench):
    entry = next(e for e in bench.entries("multi_turn_miss_func") if e.id == "multi_turn_miss_func_0")
    assert "sort" not in {doc["name"] for doc in entry.functions}
    task = bench.task(entry, None)
    assert "sort" not in {tool["function"]["name"] for tool in task.tools}
    environment = bench.environment(task)
    said = [environment.next_message() for _ in range(4)]
    assert '"name": "sort"' in said[2] and said[2].endswith("What about now?")
    assert isinstance(environment, Conversation)


def test_the_step_limit_is_the_official_one(bench):
    environment = bench.environment(bench.tasks("test")[0])
    assert [environment.continue_episode() for _ in range(STEP_LIMIT + 1)] == [True] * STEP_LIMIT + [False]
    environment.next_message()
    assert environment.continue_episode()


def test_an_episode_that_ended_early_is_force_terminated(bench):
    entry = bench.entries("multi_turn_base")[0]
    *_, messages = play_gold(entry, BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload)))
    cut = [index for index, message in enumerate(messages) if message["role"] == "user"][-1]
    assert judge(bench.simulator, entry, turns_of(messages[:cut])) == (0.0, FORCE_TERMINATED)
    # A user message that got no reply is no turn.
    assert judge(bench.simulator, entry, turns_of(messages[: cut + 1])) == (0.0, FORCE_TERMINATED)


@pytest.mark.slow
def test_a_call_that_hangs_is_an_error_and_the_state_survives():
    bench = bench_of("bench.categories=[multi_turn]")
    bench.simulator.timeout = 1.0
    entry = next(
        e for e in bench.entries("multi_turn_base") if "MathAPI" in e.classes and "GorillaFileSystem" in e.classes
    )
    environment = BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload))
    other = BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload))
    for episode in (environment, other):
        episode.call("mkdir", {"dir_name": "kept"}, 0)
    hang = {"name": "power", "arguments": {"base": 99**99, "exponent": 99**9}}
    made = environment.call(hang["name"], hang["arguments"], 0)
    assert made.error and made.observation == "Error during execution: the call took too long"
    for episode in (environment, other):
        assert "kept" in episode.call("ls", {}, 0).observation
    steps = [[{"text": "", "calls": [{"name": n, "arguments": a}]} for n, a in turn] for turn in gold_steps(entry)]
    steps[0].append({"text": "", "calls": [hang]})
    assert judge(bench.simulator, entry, steps) == (1.0, None)


def test_slow_calls_that_return_one_by_one_may_take_longer_together(bench):
    entry = bench.entries("multi_turn_base")[0]

    class Slow(Simulator):
        def ask(self, operation, timeout=None, **fields):
            if operation == "check" and timeout is None:
                raise TookTooLong
            return {"results": ["done"], "valid": timeout == 4 * self.timeout, "error_type": None}

        def generation(self):
            return 1

    assert check(Slow(1.0), entry, [[["ls()", "ls()"]], [["ls()"]]]) == (1.0, None)


def test_nothing_is_written_beside_the_package(bench):
    bench.simulator.ask("probe", classes=["MemoryAPI_kv"])
    for place in [*site.getsitepackages(), os.getcwd()]:
        assert not (Path(place) / "score").exists() and not (Path(place) / ".file_locks").exists()


def test_a_child_that_dies_is_started_again():
    simulator = Simulator(5.0)
    answers = {"response": "yes", "answers": ["yes"]}
    assert simulator.ask("check_answer", **answers)["valid"]
    simulator._child.kill()
    simulator._child.wait()
    assert simulator.ask("check_answer", **answers)["valid"]
    os.kill(simulator._child.pid, signal.SIGSTOP)  # a child that hangs, whatever the machine's speed
    with pytest.raises(TookTooLong):
        simulator.ask("check_answer", timeout=0.1, **answers)
    assert simulator.ask("check_answer", **answers)["valid"]


# -- tasks, traces, memory, web ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_variants_of_an_item_fall_on_one_side(bench):
    train, test = ({task.id for task in bench.tasks(split)} for split in ("train", "test"))
    assert len(train) == 640 and len(test) == 160
    assert {re.sub(r"\D", "", name) for name in train}.isdisjoint(re.sub(r"\D", "", name) for name in test)
    everything = bench_of("bench.categories=[multi_turn]", "bench.test_fraction=1")
    assert len(everything.tasks("test")) == 800
    with pytest.raises(UserError, match=r"bench\.test_fraction=1 leaves no item to train on"):
        everything.tasks("train")


def test_expert_traces_are_gold_calls_executed_and_checked(bench):
    for task in bench.tasks("train", limit=12, seed=1):
        entry, trace = task.data["entry"], bench.expert_trace(task)
        assert trace.calls == [{"name": n, "arguments": a} for turn in gold_steps(entry) for n, a in turn]
        assert [turn.reply for turn in trace.turns if turn.reply is not None] == list(entry.turns[1:])
        assert all(turn.calls or turn.reply for turn in trace.turns)


def test_evidence_memory_answers_the_questions():
    bench = bench_of("bench.categories=[memory_kv,memory_rec_sum]", "bench.memory=evidence")
    assert bench.solve_metric == "correct"
    tasks = [task for task in bench.tasks("test") if "finance" in task.id]
    kv = next(task for task in tasks if task.id.startswith("memory_kv"))
    trace = bench.expert_trace(kv)
    assert [call["name"] for call in trace.calls] == ["archival_memory_list_keys", "archival_memory_retrieve"]
    summary = next(task for task in tasks if task.id.startswith("memory_rec_sum"))
    assert kv.data["entry"].source in summary.prompt[0]["content"]
    assert "respond in this format" in summary.prompt[0]["content"]


def test_the_memory_of_training_shows_no_evidence_of_the_test():
    bench = bench_of("bench.categories=[memory_rec_sum]", "bench.memory=evidence")
    train, test = ([task for task in bench.tasks(split) if "finance" in task.id] for split in ("train", "test"))
    sources = {
        split: {task.data["entry"].source for task in tasks} for split, tasks in (("train", train), ("test", test))
    }
    held_out = sources["test"] - sources["train"]
    assert held_out and train
    for task in train:
        shown = task.prompt[0]["content"]
        assert task.data["entry"].source in shown and not any(source in shown for source in held_out), task.id
    assert all(source in test[0].prompt[0]["content"] for source in held_out)


def test_played_memory_comes_from_the_conversations(tmp_path):
    bench = bench_of("bench.categories=[memory_kv]")
    tasks = [task for task in bench.tasks("test") if "notetaker" in task.id][:2]
    asked = []

    def play(stage, finished):
        """A model that writes down which conversation it was in."""
        for task in stage:
            entry, environment = task.data["entry"], bench.environment(task)
            asked.append(entry.id)
            assert task.prompt[-1]["content"] == entry.turns[0]
            key = f"talk_{entry.number}"
            made = environment.call("core_memory_add", {"key": key, "value": "seen"}, 0)
            assert made.observation == '{"status": "Key-value pair added."}'
            if entry.number:
                assert f"talk_{entry.number - 1}" in task.prompt[0]["content"]
            finished(task, environment)

    ready = bench.prepare(tasks, play, tmp_path)
    chain = [entry.id for entry in bench.data.conversations("memory_kv", "notetaker")]
    assert asked == chain and len(chain) == 5
    assert all(f'"talk_{n}": "seen"' in ready[0].prompt[0]["content"] for n in range(5))
    assert "talk_4" in bench.environment(ready[0]).call("core_memory_list_keys", {}, 0).observation
    # An interrupted evaluation goes on where it was: only what left no whole snapshot is held again.
    folder = tmp_path / "agentic" / "memory" / "kv" / "memory_snapshot"
    (folder / "prereq_checkpoints" / f"{chain[4]}.json").write_text('{"core_')
    asked.clear()
    again = bench.prepare(tasks, play, tmp_path)
    assert asked == chain[4:] and again[0].prompt == ready[0].prompt


def test_a_conversation_that_is_not_held_leaves_its_questions_out(tmp_path):
    bench = bench_of("bench.categories=[memory_kv]")
    tasks = [task for task in bench.tasks("test") if "notetaker" in task.id][:1]
    chain = [entry.id for entry in bench.data.conversations("memory_kv", "notetaker")]
    assert tasks and len(chain) > 2
    asked = []

    class Engine:
        """A server that refuses the second conversation."""

        def rollout(self, episodes, decoding):
            asked.extend(episode.task.id for episode in episodes)
            return [
                SimpleNamespace(failure="HTTP 400: no" if episode.task.id == chain[1] else None) for episode in episodes
            ]

    ready, unprepared = prepare_tasks(bench, tasks, Engine(), Decoding(0.0), 4, tmp_path)
    assert ready == [] and asked == chain[:2]  # those that build on it are not held either
    assert unprepared == {tasks[0].id: "a conversation that it builds on was not played to its end: HTTP 400: no"}


def test_recorded_search_plays_the_hops():
    bench = bench_of("bench.categories=[web_search]", "bench.web=replay")
    for task in bench.tasks("test", limit=6, seed=2):
        environment, snippets = bench.environment(task), task.id.startswith("web_search_base")
        hop = task.data["entry"].source[0]
        found = environment.call("search_engine_query", {"keywords": hop["subquestion"], "max_results": 1}, 0)
        assert hop["source"] in found.observation and ("'body'" in found.observation) == snippets
        page = environment.call("fetch_url_content", {"url": hop["source"]}, 0)
        assert hop["answer"] in json.loads(page.observation)["content"]
        assert environment.call("fetch_url_content", {"url": "ftp://x"}, 0).error
        assert environment.call("search_engine_query", {"wrong": 1}, 0).error


def test_categories_that_cannot_run_are_skipped_with_their_reason(monkeypatch, capsys):
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    bench = bench_of("bench.categories=[memory_kv,web_search_base]", "bench.memory=evidence")
    assert {task.data["entry"].category for task in bench.tasks("test")} == {"memory_kv"}
    assert "web_search_base is skipped: it needs SerpApi; set SERPAPI_API_KEY" in capsys.readouterr().err
    with pytest.raises(UserError, match="none can run here; bfcl: web_search_base is skipped"):
        bench_of("bench.categories=[web_search_base]").tasks("test")


def test_every_memory_class_probed_is_named(bench):
    missing = bench.simulator.ask(
        "probe", timeout=120.0, classes=[f"MemoryAPI_{c.removeprefix('memory_')}" for c in MEMORY]
    )
    assert set(missing["missing"]) <= {"MemoryAPI_vector"}, "kv and rec_sum need nothing that is not installed"
