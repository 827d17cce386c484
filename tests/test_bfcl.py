"""BFCL: the official verdicts on recorded episodes, safe calls, episodes that share nothing, traces, memory."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import site
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import composed

from agentrl.benches.base import Conversation
from agentrl.benches.bfcl.calls import REFUSED, RefusedCall, call_string, decode_text, decoded, safe_string
from agentrl.benches.bfcl.data import MEMORY, MULTI_TURN, DataFiles, tool_schema
from agentrl.benches.bfcl.environment import STEP_LIMIT, BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.simulator import INSTALL, Simulator, TookTooLong, package_dir
from agentrl.benches.bfcl.traces import gold_call
from agentrl.benches.bfcl.verdicts import FORCE_TERMINATED, check, judge, turns_of
from agentrl.commands.export import main as export
from agentrl.errors import UserError
from agentrl.run import RunDirectory

INSTALLED = importlib.util.find_spec("bfcl_eval") is not None
pytestmark = pytest.mark.skipif(not INSTALLED, reason=f"bfcl-eval is not installed: {INSTALL}")


def bench_of(*overrides):
    from agentrl.benches import load_bench

    return load_bench(composed("bench=bfcl", *overrides).bench)


@pytest.fixture(scope="module")
def bench():
    return bench_of("bench.categories=[multi_turn]")


@pytest.fixture(scope="module")
def simulator(bench):
    return bench.simulator


def records(shared: Path, name: str):
    return [json.loads(line) for line in (shared / "parity" / f"{name}.jsonl").read_text().splitlines()]


# -- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["calls", "text", "messages"])
def test_multi_turn_verdicts_are_the_official_ones(bench, shared, held):
    """All records as calls; a fifth of them again as raw text, and as chat messages."""
    for number, record in enumerate(records(shared, "bfcl_multi_turn")):
        official = record["official"]
        item = {"row": record["row"], "category": record["category"]}
        if held == "calls":
            item["turns"] = [[{"calls": step["calls"]} for step in turn] for turn in record["turns"]]
        elif number % 5:
            continue
        elif held == "text":
            item = {"id": record["row_id"], "turns": [[step["text"] for step in turn] for turn in record["turns"]]}
        elif all(record["turns"]):  # a turn that the model was never asked in cannot be told from messages
            item["messages"] = [{"role": "system", "content": "Tools."}]
            for turn in record["turns"]:
                item["messages"].append({"role": "user", "content": "?"})
                item["messages"] += [{"role": "assistant", "content": step["text"]} for step in turn]
        else:
            continue
        metrics, reason = bench.score_transcript(item)
        assert (metrics, reason) == ({"valid": float(official["valid"])}, official["error_type"]), record["case"]


def test_texts_decode_as_the_official_handler_decodes_them(shared):
    for record in records(shared, "bfcl_multi_turn"):
        for step in (step for turn in record["turns"] for step in turn):
            assert decode_text(step["text"]) == step["calls"], record["case"]


@pytest.mark.parametrize(("name", "category"), [("bfcl_memory", "memory_kv"), ("bfcl_web_search", "web_search_base")])
def test_answers_are_judged_as_officially(bench, shared, name, category):
    for record in records(shared, name):
        official = record["official"]
        expected = {"correct": float(official["valid"])}, official["error_type"]
        assert bench.score_transcript({**record, "category": category}) == expected, record["case"]
        by_id = {"id": record["row_id"], "response": record["response"]}
        assert bench.score_transcript(by_id) == expected, record["case"]


def test_the_last_message_without_a_call_is_judged(bench):
    call = '<tool_call>\n{"name": "core_memory_list_keys", "arguments": {}}\n</tool_call>'
    said = [{"role": "assistant", "content": text} for text in (call, "Michael")]
    item = {"id": "memory_kv_0-customer-0"}
    assert bench.score_transcript({**item, "messages": said}) == ({"correct": 1.0}, None)
    assert bench.score_transcript({**item, "messages": said[:1]}) == ({"correct": 0.0}, "agentic:no_last_message")
    assert bench.score_transcript({**item, "turns": [[call, "Michelle"]]})[0] == {"correct": 0.0}
    assert bench.score_transcript({**item, "turns": [["Michael"], ["Michael"]]}) == (
        {"correct": 0.0},
        "agentic:inference_error",
    )
    assert bench.score_transcript({"row": 0, "category": "memory", "messages": said})[0] == {"correct": 1.0}
    # The official handler keeps no thought of a step; a `response` given as such is taken as it is.
    for text, right in (("<think>Michael</think>\n\nMichelle", 0.0), ("<think>Michelle</think>Michael", 1.0)):
        assert bench.score_transcript({**item, "turns": [[text]]})[0] == {"correct": right}
        assert bench.score_transcript({**item, "response": text})[0] == {"correct": 1.0}
    assert bench.score_transcript({**item, "turns": [["<think>Michael</think>\n"]]})[1] == "agentic:no_last_message"


def test_a_category_file_as_path_names_the_rows():
    path = package_dir() / "data" / "BFCL_v4_multi_turn_miss_param.json"
    bench = bench_of(f"bench.path={path}")
    assert bench.categories == ("multi_turn_miss_param",)
    assert bench.score_transcript({"row": 3, "turns": []}) == ({"valid": 0.0}, FORCE_TERMINATED)
    memory = bench_of(f"bench.path={package_dir() / 'data' / 'BFCL_v4_memory.json'}", "bench.categories=[multi_turn]")
    assert memory.score_transcript({"row": 0, "response": "Michael"}) == ({"correct": 1.0}, None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"turns": []}, "row: expected|several data files"),
        ({"id": "multi_turn_base_999", "turns": []}, "no item 'multi_turn_base_999'"),
        ({"id": "multi_turn_base_0"}, "expected `turns`"),
        ({"id": "multi_turn_base_0", "turns": [3]}, "turns:"),
        ({"id": "multi_turn_base_0", "turns": [[3]]}, "turns:"),
        ({"id": "multi_turn_base_0", "turns": [[{"text": 3}]]}, "turns:"),
        ({"id": "multi_turn_base_0", "messages": [{"role": "assistant", "content": ["x"]}]}, "content of message 0"),
        ({"id": "multi_turn_base_0", "messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "tool_calls of mess"),
        ({"row": 0, "category": ["multi_turn_base"], "turns": []}, "no category"),
        ({"row": True, "category": "multi_turn_base", "turns": []}, "row: expected"),
        ({"row": 200, "category": "multi_turn_base", "turns": []}, "0 to 199"),
        ({"row": 0, "category": "simple_python", "turns": []}, "no category"),
    ],
)
def test_a_record_that_cannot_be_scored_says_why(bench, record, reason):
    metrics, why = bench.score_transcript(record)
    assert metrics == {} and re.search(reason, why)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_values_are_written_by_repr_and_names_are_whitelisted(tmp_path):
    assert call_string("cd", {"folder": "a'b\"c\n"}, {"cd"}) == "cd(folder='a\\'b\"c\\n')"
    assert (
        call_string(" cd ", {"x": None, "y": [True, 1.5, {"k": "v"}]}, {"cd"}) == "cd(x=None,y=[True, 1.5, {'k': 'v'}])"
    )
    assert call_string("cd", {" folder\n": 1}, {"cd"}) == "cd( folder\n=1)"  # good Python, as the official code has it
    evil = f"open({str(tmp_path / 'owned')!r}, 'w')"
    for name in (f"cd(folder={evil}) or cd", evil, "__import__('os').abort", "print", "cd;x", ""):
        with pytest.raises(RefusedCall):
            call_string(name, {}, {"cd"})
    for key in (f"x={evil}, folder", "class", "a b", "a.b", "", "*args"):
        with pytest.raises(RefusedCall):
            call_string("cd", {key: 1}, {"cd"})
    assert safe_string("print", {}, {"cd"}) == REFUSED


def test_model_text_is_never_evaluated(bench, tmp_path):
    mark = tmp_path / "owned"
    evil = f"open({str(mark)!r}, 'w').write('x')"
    task = bench.tasks("test")[0]
    environment = bench.environment(task)
    attempts = [
        (evil, {}),
        (f"ls() or {evil} or ls", {}),
        ("ls", {f"a={evil}, b": 1}),
        ("cd", {"folder": f"' + {evil} + '"}),
        ("cd", f'{{"folder": "x"}} or {evil}'),
    ]
    for name, arguments in attempts:
        observation = environment.call(name, arguments, 0).observation
        assert observation.startswith("Error during execution: ") or '"error"' in observation, (name, observation)
    turns = [[{"calls": [{"name": name, "arguments": arguments}]} for name, arguments in attempts]]
    bench.score_transcript({"id": task.id, "turns": turns * len(task.data["entry"].gold)})
    assert not mark.exists()


def test_steps_that_do_not_decode():
    assert decoded([{"name": "ls", "arguments": "{}"}]) == [("ls", {})]
    for calls in (
        [{"name": "ls"}],
        [["ls"]],
        [{"name": "ls", "arguments": None}],
        [{"name": "ls", "arguments": "[1]"}],
        [{"name": ["ls"], "arguments": {}}],
        [{"name": {"ls": 1}, "arguments": {}}],
    ):
        assert decoded(calls) is None
    assert decoded([{"name": 5, "arguments": {}}]) == [("5", {})]  # decodes, and fails when executed


def test_function_docs_become_json_schemas():
    for doc in DataFiles().docs(["TradingBot", "VehicleControlAPI", "MathAPI", "TravelAPI", "MemoryAPI_kv"]):
        schema = tool_schema(doc)["function"]["parameters"]
        kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(schema)))
        assert schema["type"] == "object"
        assert kinds <= {"object", "string", "number", "integer", "array", "boolean"}
        assert doc["parameters"]["type"] == "dict", "the doc itself must stay as it was"


# -- episodes ----------------------------------------------------------------------------------------------------------


def gold_steps(entry):
    return [[gold_call(text, entry.docs) for text in turn] for turn in entry.gold]


def play_gold(entry, environment):
    """Messages of an episode of gold calls, one a step where the step limit allows; yields after every step."""
    messages = []
    for turn in gold_steps(entry):
        size = -(-len(turn) // STEP_LIMIT) or 1
        for start in range(0, len(turn), size):
            step = turn[start : start + size]
            calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in step]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            for name, arguments in step:
                made = environment.call(name, arguments, 0)
                assert not made.error, (entry.id, made)
                messages.append({"role": "tool", "name": name, "content": made.observation})
            assert environment.continue_episode(), entry.id
            yield messages
        messages.append({"role": "assistant", "content": "Done."})
        said = environment.next_message()
        if said is not None:
            messages.append({"role": "user", "content": said})
    assert said is None, "the user had more to say"
    yield messages


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
    assert (
        "web_search_base is skipped: it searches the web through SerpAPI; set SERPAPI_API_KEY"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="none can run here; bfcl: web_search_base is skipped"):
        bench_of("bench.categories=[web_search_base]").tasks("test")


def test_every_memory_class_probed_is_named(bench):
    missing = bench.simulator.ask(
        "probe", timeout=120.0, classes=[f"MemoryAPI_{c.removeprefix('memory_')}" for c in MEMORY]
    )
    assert set(missing["missing"]) <= {"MemoryAPI_vector"}, "kv and rec_sum need nothing that is not installed"


# -- export ------------------------------------------------------------------------------------------------------------


def test_the_official_evaluator_scores_an_exported_run_as_we_do(bench, tmp_path, capsys):
    """The real `bfcl evaluate` on the files of `agentrl export`: whole, cut and wrong episodes, and answers."""
    run = RunDirectory.create(composed("bench=bfcl", f"runs_dir={tmp_path}", "name=x"))
    items, ours = [], {"multi_turn_base": [], "memory_kv": []}
    for number, entry in enumerate(bench.entries("multi_turn_base")[:4]):
        *_, messages = play_gold(entry, BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload)))
        kept = {1: messages[:3], 2: [m for m in messages if not m.get("tool_calls")]}.get(number, messages)
        items.append({"id": entry.id, "sample": 0, "messages": kept})
        ours["multi_turn_base"].append(judge(bench.simulator, entry, turns_of(kept))[0])
    for entry in bench.entries("memory_kv")[:2]:
        kept = [{"role": "assistant", "content": "I think <b>Michael</b>."}]
        items.append({"id": entry.id, "sample": 0, "messages": kept})
        ours["memory_kv"].append(judge(bench.simulator, entry, turns_of(kept))[0])
    run.eval_dir.mkdir(exist_ok=True)
    for item in [*items, {**items[1], "sample": 1}]:
        run.append(run.eval_dir / "after.jsonl", item)
    out = tmp_path / "official"
    assert export(["bfcl", str(run.path), f"out={out}"]) == 0
    assert f"BFCL_PROJECT_ROOT={out} bfcl evaluate --model Qwen/Qwen3-8B-FC" in capsys.readouterr().out
    script = Path(__file__).with_name("official_bfcl.py")
    done = subprocess.run(
        [sys.executable, str(script), "Qwen/Qwen3-8B-FC", *ours],
        env={**os.environ, "BFCL_PROJECT_ROOT": str(out)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for category, verdicts in ours.items():
        (file,) = (out / "score").rglob(f"BFCL_v4_{category}_score.json")
        head = json.loads(file.read_text().splitlines()[0])
        assert (head["correct_count"], head["total_count"]) == (sum(verdicts), len(verdicts)), category
        assert 0 < sum(verdicts) < len(verdicts)


def test_export_wants_a_bfcl_run_with_an_evaluation(tmp_path):
    for arguments in ([], ["bfcl"], ["ftrl", str(tmp_path)]):
        with pytest.raises(UserError, match="agentrl export bfcl RUN"):
            export(arguments)
    run = RunDirectory.create(composed("bench=bfcl", f"runs_dir={tmp_path}", "name=x"))
    with pytest.raises(UserError, match="holds no evaluation called after"):
        export(["bfcl", str(run.path)])
    other = RunDirectory.create(composed(f"runs_dir={tmp_path}", "name=y"))
    with pytest.raises(UserError, match="is a run on bench=minihop, not bfcl"):
        export(["bfcl", str(other.path)])


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pact_trains_and_evaluates_on_bfcl(tmp_path):
    """Multi-turn and memory, the latter played before each evaluation."""
    overrides = [
        "algo=pact",
        "model=tiny",
        "bench=bfcl",
        "bench.categories=[multi_turn_base,memory_rec_sum]",
        "trainer.max_steps=2",
        "eval.limit=3",
        "eval.before=false",
        "rollout.max_turns=4",
        "rollout.max_turn_tokens=24",
        "rollout.max_prompt_tokens=6000",
        "hardware.threads=1",
        f"runs_dir={tmp_path}",
        "run_id=here",
    ]
    done = subprocess.run([sys.executable, "-m", "agentrl", *overrides], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(next(tmp_path.glob("*/here")))
    summary = json.loads(run.summary_path.read_text())
    assert summary["steps"] == 2 and "solved" in summary["eval"]["after"]
    items = run.records(run.eval_dir / "after.jsonl")
    assert {item["groups"]["category"] for item in items} <= {"multi_turn_base", "memory_rec_sum"}
    assert all(item["messages"][0]["role"] == "assistant" for item in items)
