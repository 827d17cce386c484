"""Files of traces: each line is checked, reasoning is segmented, and traces come from a bench or from a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches import load_bench
from agentrl.commands.traces import main as traces_command
from agentrl.core.errors import UserError
from agentrl.traces.files import check_calls, make_lookup, read_traces, to_line
from agentrl.traces.segmentation import PREVIEW, previews, segment, split_sentences
from tests.support.chat_server import ChatServer, Reply, call, completion, said
from tests.support.helpers import composed

CALL = {"name": "get_mayor", "arguments": {"city": "Bajat"}}


# --- segmentation ---------------------------------------------------------------------------------------------------


def test_rules_label_ordinary_reasoning_and_lose_no_character() -> None:
    text = (
        "The user wants to find the mayor of Bajat. I can use the mayor tool. The required parameter is the city. "
        "The limit is optional.\nSo I will do it now."
    )
    chunks = segment(text, [CALL])
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.type for chunk in chunks] == [
        "task_restate",
        "tool_selection",
        "required_arg_grounding",
        "optional_arg_analysis",
        "decision_summary",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        'get_mayor(city="Bajat")',
        'I write {"name": "get_mayor", "arguments": {"city": "Bajat"}}.',
        "I call get_mayor with Bajat.",
    ],
)
def test_a_literal_preview_of_a_call_is_always_held_back(sentence: str) -> None:
    text = f"I need to find the mayor. {sentence} Then I will use the result."
    for annotate in (None, lambda sentences: ["task_restate"] * len(sentences)):
        chunks = segment(text, [CALL], annotate)
        assert [chunk.type for chunk in chunks if sentence in chunk.text] == [PREVIEW]
    assert not previews("I need the mayor of Bajat.", [CALL]) and not previews("I use get_mayor.", [CALL])


def test_hard_reasoning_goes_to_the_annotator_or_becomes_paragraphs() -> None:
    text = "Hmm, Bajat.\n\nInteresting place, that one. get_mayor(Bajat) it is. Fine."
    labelled = segment(text, [CALL], lambda sentences: ["tool_scan", "other", "other", "decision_summary"])
    assert [chunk.type for chunk in labelled] == ["tool_scan", "other", PREVIEW, "decision_summary"]
    for annotate in (None, lambda sentences: None, lambda s: ["other"], lambda s: ["nonsense"] * len(s)):
        safe = segment(text, [CALL], annotate)
        # paragraphs before the preview, and nothing after it
        assert [(chunk.type, chunk.text) for chunk in safe] == [
            ("other", "Hmm, Bajat.\n\n"),
            ("other", "Interesting place, that one. "),
            (PREVIEW, "get_mayor(Bajat) it is. Fine."),
        ]
    assert segment("", [CALL]) == () and split_sentences(" \n") == []


# --- files ----------------------------------------------------------------------------------------------------------


def test_traces_read_from_a_file_replace_the_benchs_own(tmp_path: Path) -> None:
    bench = load_bench(composed("bench=minihop").bench)
    first, second = bench.tasks("train")[:2]
    trace = bench.expert_trace(first)
    assert trace is not None
    (tmp_path / "traces.jsonl").write_text(to_line(trace))
    traces = read_traces(tmp_path / "traces.jsonl")
    assert traces == {first.id: trace}
    given = make_lookup(traces)
    assert given(first) == trace and given(second) is None and bench.expert_trace(second) is not None


def test_a_trace_without_calls_suits_a_task_without_tools_alone(tmp_path: Path) -> None:
    task = load_bench(composed("bench=minihop").bench).tasks("train")[0]
    (tmp_path / "traces.jsonl").write_text(json.dumps({"task_id": task.id, "answer": "Rome", "turns": []}))
    traces = read_traces(tmp_path / "traces.jsonl")
    with pytest.raises(UserError, match=f"the trace of task {task.id} makes no call, and the task has tools"):
        check_calls(traces, [task])
    check_calls(traces, [replace(task, tools=[]), replace(task, id="other")])


def test_replies_of_a_two_sided_bench_become_a_file_with_a_page(tmp_path: Path) -> None:
    out = tmp_path / "replies.jsonl"
    assert traces_command(["build", "bench=minihif", f"out={out}", "limit=3"]) == 0
    traces = read_traces(out)
    assert len(traces) == 3 and all(trace.answer and not trace.turns for trace in traces.values())
    page = out.with_suffix(".html").read_text()
    assert "characters of reasoning" in page and "chunks of a turn" not in page


GOOD = {"task_id": "t", "answer": "a", "turns": [{"chunks": [], "calls": [CALL], "observations": ["x"]}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turns": [{"chunks": [], "calls": [CALL], "observations": []}]}, "1 calls need as many observations"),
        ({"turns": [], "answer": ""}, "neither a call nor an answer"),
        ({"answer": 7}, "answer is not a string"),
        ({"turns": [{"chunks": [{"type": "musing", "text": ""}], "calls": [], "observations": []}]}, "musing"),
        (
            {"turns": [{"chunks": [], "calls": [{"name": "f", "arguments": "x"}], "observations": [""]}]},
            "not an object",
        ),
    ],
)
def test_the_error_for_a_bad_line_gives_its_number(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"task_id": "u"} | change) + "\n")
    with pytest.raises(UserError, match=f"line 3: .*{re.escape(reason)}"):
        read_traces(file)
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match="line 2: a second trace of task t"):
        read_traces(file)


# --- the command ----------------------------------------------------------------------------------------------------


def test_build_mines_traces_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "traces.jsonl"
    assert traces_command(["build", "bench=minihop", "limit=12", f"out={out}"]) == 0
    assert "12 traces of 12 tasks" in capsys.readouterr().out
    assert len(read_traces(out)) == 12
    page = out.with_suffix(".html").read_text()
    assert "<script" not in page and 'class="preview"' in page and "task_restate" in page
    with pytest.raises(UserError, match="exists already"):
        traces_command(["build", "bench=minihop", f"out={out}"])
    with pytest.raises(UserError, match="set endpoint="):
        traces_command(["build", "bench=minihop", f"out={tmp_path / 't'}", "source=teacher"])
    asked = ["source=teacher", "endpoint=http://localhost:1", "teacher=big"]
    with pytest.raises(UserError, match=r"^source=teacher: keeps rollouts that call tools, and bench=minihif has none"):
        traces_command(["build", "bench=minihif", f"out={tmp_path / 't'}", *asked])


class Teacher(ChatServer):
    """Solves minihop tasks by reading the question, and misbehaves on some of them, by their position in
    `questions`.
    """

    def __init__(self) -> None:
        super().__init__(self.solve)
        self.tasks = load_bench(composed("bench=minihop").bench).tasks("train")[:8]
        self.questions = [task.prompt[0]["content"].rsplit("Question: ", 1)[1] for task in self.tasks]

    def place(self, body: dict[str, Any]) -> int:
        prompt = next(message["content"] for message in body["messages"] if message["role"] == "user")
        return self.questions.index(prompt.rsplit("Question: ", 1)[1])

    def solve(self, body: dict[str, Any], _: int) -> Any:
        kind = self.place(body) % 4
        start, *hops = self.questions[self.place(body)].removeprefix("What is ").removesuffix("?").split("'s ")
        seen = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        if len(seen) == len(hops):
            return completion(said("<answer>nobody</answer>" if kind == 1 else f"<answer>{seen[-1]}</answer>"))
        hop = hops[len(seen)]
        tool = next(t["function"] for t in body["tools"] if t["function"]["name"] == f"get_{hop}")
        (parameter,) = tool["parameters"]["properties"]
        arguments = json.dumps({parameter: "Nobody" if kind == 1 else (seen or [start])[-1]})
        text = f"I need to find the {hop}. I use a tool." + ("<|im_end|>" if kind == 3 else "")
        if self.place(body) == 4:  # a server without a reasoning parser
            text = f"<think>\n{text}\n</think>\n\n"
        return completion(said(text, call("get_rich" if kind == 2 else tool["name"], arguments)))


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher() as server:
        yield server


def build_command(teacher: Teacher, out: Path, limit: int = 8) -> list[str]:
    own = ["source=teacher", f"endpoint={teacher.url}", "teacher=big", f"out={out}", "algo.endpoint.retries=0"]
    return ["build", "bench=minihop", f"limit={limit}", *own]


def test_a_teachers_traces_are_kept_only_if_they_verify(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, out = teacher.tasks, tmp_path / "taught.jsonl"
    build = build_command(teacher, out)
    assert traces_command([*build, "tries=2"]) == 0
    printed = capsys.readouterr().out
    assert "2 traces of 8 tasks" in printed
    for reason in ("a tool that does not exist", "role text or call tags", "neither the answer nor the last"):
        assert re.search(rf"2 rejected: {reason}", printed), printed
    traces = read_traces(out)
    assert set(traces) == {tasks[0].id, tasks[4].id}
    for place in (0, 4):
        trace = traces[tasks[place].id]
        assert trace.source == "teacher" and trace.answer == tasks[place].answer
        assert trace.turns[-1].observations == (tasks[place].answer,)
        assert [chunk.type for chunk in trace.turns[0].chunks] == ["task_restate", "tool_selection"]
        assert not any(
            "think>" in chunk.text for chunk in trace.turns[0].chunks
        )  # the student's template writes its own tags
    # A kill leaves half a line; finished tasks are not asked again.
    asked, text = len(teacher.bodies), out.read_text()
    out.write_text(text[: len(text) - 20])
    assert traces_command([*build, "tries=2"]) == 0
    assert set(read_traces(out)) == {tasks[0].id, tasks[4].id}
    assert 0 < len(teacher.bodies) - asked <= len(tasks[4].data["chain"]) + 1


@pytest.mark.slow
def test_a_task_that_the_teachers_server_does_not_play_is_tried_again(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        refused = Reply({"error": {"message": "too long for me"}}, 400)
        broken = completion(None) if any(message["role"] == "tool" for message in body["messages"]) else refused
        return {0: refused, 1: broken}.get(teacher.place(body)) or teacher.solve(body, number)

    out = tmp_path / "taught.jsonl"
    build = [*build_command(teacher, out), "tries=2"]
    teacher.respond = lambda body, _: Reply({"error": {"message": "no key"}}, 401)
    with pytest.raises(UserError, match=r"no trace was made.*refuses the key in OPENAI_API_KEY.*tries them again"):
        traces_command(build)
    teacher.respond = respond
    assert traces_command(build) == 0
    printed = capsys.readouterr().out
    assert "1 traces of 6 tasks" in printed
    assert "missing: 2 more tasks, which the same command tries again" in printed and "too long for me" in printed
    assert set(read_traces(out)) == {teacher.tasks[4].id}
    teacher.respond, asked = teacher.solve, len(teacher.bodies)
    assert traces_command(build) == 0
    assert "2 traces of 8 tasks" in (printed := capsys.readouterr().out) and "missing" not in printed
    assert set(read_traces(out)) == {teacher.tasks[0].id, teacher.tasks[4].id}
    assert {teacher.place(body) for body in teacher.bodies[asked:]} == {0, 1}


def test_a_trace_whose_labels_are_missing_is_tried_again(teacher: Teacher, tmp_path: Path) -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if "tools" not in body:  # the annotator's question
            return Reply({"error": {"message": "busy"}}, 503)
        answer = teacher.solve(body, number)
        answer["choices"][0]["message"]["content"] += (
            "\n\nHmm, odd. Bananas are yellow. So it goes. Well now. Quite so."
        )
        return answer

    teacher.respond = respond
    with pytest.raises(UserError, match=r"no trace was made.*HTTP 503: busy"):
        traces_command([*build_command(teacher, tmp_path / "t.jsonl", limit=1), "tries=1", "annotate=true"])
