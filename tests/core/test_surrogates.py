"""Half a surrogate pair, which JSON can hold and UTF-8 cannot, is U+FFFD as soon as a file or a model brings it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from agentrl.benches import load_bench
from agentrl.chat.format import ChatFormat
from agentrl.chat.reading import read_turn
from agentrl.core.bench import Task
from agentrl.core.jsonl import read_json
from agentrl.core.judge import JudgeRequest
from agentrl.core.text import replace_surrogates
from agentrl.core.trajectory import ToolCall
from agentrl.models.loading import checkpoint_path
from agentrl.rollout.guard import call_tool
from agentrl.rollout.loop import react
from agentrl.store.durable import read_records
from agentrl.traces.files import read_traces, to_line
from agentrl.trainers.preferences import file_pairs
from tests.benches.test_ftrl import bench as ftrl_bench
from tests.benches.test_ftrl import row as ftrl_row
from tests.support import toolhop_rows
from tests.support.helpers import composed

HALF, MARK = "\ud83d", "\ufffd"


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny")), None, "content")


def spoilt(value: Any, tool: str = "") -> Any:
    """Every text of a row with half a pair at its end, but for Python sources and roles."""
    if isinstance(value, dict):
        return {
            key if key in KEYS else key + HALF: item if key in ("role", "type") else spoilt(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [spoilt(item) for item in value]
    return value + HALF if isinstance(value, str) and "def " not in value else value


KEYS = (
    *("messages", "role", "content", "tools", "codes", "unsolved_set", "answer", "data_source", "split", "type"),
    *("function", "name", "description", "parameters", "properties", "required", "solve_rate", "id", "question"),
    *("sub_task", "functions", "domain", "answer_type", "previous_answer_type", "system", "user", "kind"),
)


def taken(tasks: list[Task], chat: ChatFormat) -> None:
    """Tokenizers, tables and files take the tasks, and the mark stands where half a pair stood."""
    assert tasks
    Dataset.from_list([{"prompt": task.prompt} for task in tasks])
    for task in tasks:
        assert chat.prompt_ids(task.prompt, task.tools)
        text = json.dumps([task.id, task.prompt, task.tools, task.answer, task.golds], ensure_ascii=False)
        assert MARK in text and text.encode("utf-8")


@pytest.mark.parametrize("nested", [True, False])
def test_ftrl(nested: bool, tmp_path: Path, chat: ChatFormat) -> None:
    row = ftrl_row()
    row = row | {key: json.loads(row[key]) for key in ("tools", "codes", "unsolved_set")}
    row = spoilt(row) | {"split": "test"}
    if not nested:
        row |= {key: json.dumps(row[key]) for key in ("tools", "codes", "unsolved_set")}
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    bench = ftrl_bench(file)
    (task,) = bench.tasks("test")
    taken([task], chat)
    name = task.tools[0]["function"]["name"]
    assert name == f"capital{MARK}" and list(task.golds) == [name, f"people{MARK}"]
    made = bench.environment(task).call(name, {f"country{MARK}": "x"}, 0)
    assert made.observation.encode("utf-8")
    assert bench.expert_trace(task) is None
    text = '<tool_call>\n{"name": "capital\\ud83d", "arguments": {}}\n</tool_call>'
    record = {
        "row": 0,
        "messages": [{"role": "assistant", "content": text}, {"role": "tool", "content": "Brondal\ufffd"}],
    }
    assert bench.score_transcript(record)[0]["solve_r"] == 0.5


def test_toolhop(tmp_path: Path, chat: ChatFormat) -> None:
    file = tmp_path / "ToolHop.json"
    rows = [spoilt(row) for row in toolhop_rows.rows()]
    for row in rows:
        row["functions"] = dict(zip([tool["name"] for tool in row["tools"].values()], row["functions"], strict=True))
    file.write_text(json.dumps(rows), encoding="utf-8")
    bench = load_bench(composed("bench=toolhop", f"bench.path={file}").bench)
    taken(bench.tasks("test"), chat)


@pytest.mark.parametrize("name", ["pairs", "systemcheck"])
def test_prompts(name: str, tmp_path: Path, chat: ChatFormat) -> None:
    rows = [{"system": f"S{i}", "user": f"U{i}", "kind": ("aligned", "conflict")[i % 2]} for i in range(12)]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(spoilt(row) | {"kind": row["kind"]}) + "\n" for row in rows), encoding="utf-8")
    overrides = [f"bench={name}", f"bench.path={file}"]
    if name == "systemcheck":
        overrides += ["bench.train_tasks=8", "bench.test_tasks=4"]
    bench = load_bench(composed(*overrides).bench)
    taken(bench.tasks("train") + bench.tasks("test"), chat)


def test_the_shared_files(shared: Path, chat: ChatFormat) -> None:
    tasks = ftrl_bench(shared / "cases/surrogate_question.jsonl").tasks("test")
    assert any(MARK in task.prompt[-1]["content"] for task in tasks)
    assert all(chat.prompt_ids(task.prompt, task.tools) for task in tasks)
    pairs = load_bench(composed("bench=pairs", f"bench.path={shared / 'cases/surrogate_pairs.jsonl'}").bench)
    taken(pairs.tasks("test"), chat)  # all of its rows have one system prompt


def test_traces_and_preference_pairs(tmp_path: Path, chat: ChatFormat) -> None:
    chunk = {"type": "task_restate", "text": f"I{HALF}"}
    call = {"name": f"f{HALF}", "arguments": {f"a{HALF}": HALF}}
    turn = {"chunks": [chunk], "calls": [call], "observations": [HALF]}
    file = tmp_path / "t.jsonl"
    record = {"task_id": "t", "turns": [turn], "answer": HALF, "source": "mined"}
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (trace,) = read_traces(file).values()
    assert to_line(trace).encode("utf-8") and trace.calls == [{"name": f"f{MARK}", "arguments": {f"a{MARK}": MARK}}]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"user": HALF, "chosen": f"a{HALF}", "rejected": "b"}) + "\n", encoding="utf-8")
    (pair,) = file_pairs(str(pairs), chat)
    assert MARK in chat.tokenizer.decode(pair["chosen_ids"])


def test_tasks_and_environments_of_ones_own(chat: ChatFormat) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": HALF, "parameters": {}}}
    taken([Task("t", [{"role": "user", "content": HALF}], [tool], HALF, "c")], chat)

    class Talk:
        def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
            return ToolCall(turn, name, arguments, f"é{HALF}")

        def next_message(self) -> str | None:
            return HALF

        def continue_episode(self) -> bool:
            return True

    assert call_tool(Talk(), "f", {}, "stop").observation == f"é{MARK}"
    said, _ = react(Talk(), {"role": "assistant", "content": ""}, [], "stop")
    assert said == [{"role": "user", "content": MARK}]


def test_what_models_and_judges_say(tmp_path: Path) -> None:
    environment = SimpleNamespace(read=lambda text: (text, []), call=None)
    assert read_turn(f"a{HALF}", environment)["content"] == f"a{MARK}"  # type: ignore[arg-type]
    assert JudgeRequest("user", HALF, f"a{HALF}").response == f"a{MARK}"
    old = tmp_path / "rollouts.jsonl"
    old.write_text(json.dumps({"text": HALF}) + "\n", encoding="utf-8")
    assert read_records(old) == [{"text": MARK}]


def test_whole_pairs_and_depth_are_left_as_they_are() -> None:
    assert read_json('{"\\ud83d\\ude00": ["\\ude00\\ud83d"]}') == {"\U0001f600": [MARK * 2]}
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    replace_surrogates(deep)
    given = {"a": [HALF]}
    assert replace_surrogates(given) == {"a": [MARK]} and given == {"a": [HALF]}
