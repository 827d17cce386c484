"""Write and read expert traces as a file with one JSON object a line. Each line of a user's file is checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrl.core.bench import ExpertTraces, Task
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import CHUNK_TYPES, Chunk, ExpertTrace, TraceTurn
from agentrl.core.jsonl import UTF_8, explain_json, numbered_lines, read_json

FORM = (
    '{"task_id": str, "answer": str, "turns": [{"chunks": [{"type": str, "text": str}], '
    '"calls": [{"name": str, "arguments": {}}], "observations": [str]}]}'
)


def to_line(trace: ExpertTrace) -> str:
    """Return the trace as a line of a file, newline included."""
    return json.dumps(asdict(trace), ensure_ascii=False) + "\n"


def read_traces(path: Path) -> dict[str, ExpertTrace]:
    """Return the traces by task id.

    Raises:
        UserError: the file cannot be read, or a line is not a trace; the message gives the line's number and the
            reason.
    """
    try:
        text = path.read_text(encoding=UTF_8)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"traces={path} cannot be read: {error}") from error
    traces: dict[str, ExpertTrace] = {}
    for number, line in numbered_lines(text):
        try:
            record = read_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"traces={path}, line {number} is not JSON ({explain_json(error)}); a line is {FORM}"
            ) from error
        try:
            trace = _trace(record)
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"traces={path}, line {number}: {reason}; a line is {FORM}") from error
        if trace.task_id in traces:
            raise UserError(f"traces={path}, line {number}: a second trace of task {trace.task_id}; keep one")
        traces[trace.task_id] = trace
    if not traces:
        raise UserError(f"traces={path} holds no trace; name a file that agentrl traces build wrote")
    return traces


def check_calls(traces: Mapping[str, ExpertTrace], tasks: Iterable[Task]) -> None:
    """Raise UserError if the trace of a task with tools makes no call: it would teach to answer at once."""
    for task in tasks:
        if task.tools and (trace := traces.get(task.id)) is not None and not trace.calls:
            raise UserError(
                f"traces: the trace of task {task.id} makes no call, and the task has tools; add its calls or "
                "remove the line"
            )


def make_lookup(traces: Mapping[str, ExpertTrace]) -> ExpertTraces:
    """Return a function that gives a task's trace, or None. Trainers use it instead of the bench's own traces."""
    return lambda task: traces.get(task.id)


def _trace(record: Any) -> ExpertTrace:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    turns = tuple(_turn(turn) for turn in _list(record, "turns"))
    trace = ExpertTrace(_text(record, "task_id"), turns, _text(record, "answer"), str(record.get("source", "path")))
    if not trace.calls and not trace.answer:
        raise ValueError("the trace has neither a call nor an answer")
    return trace


def _turn(record: Any) -> TraceTurn:
    chunks = tuple(Chunk(_text(chunk, "type"), _text(chunk, "text")) for chunk in _list(record, "chunks"))
    calls = tuple({"name": _text(call, "name"), "arguments": call["arguments"]} for call in _list(record, "calls"))
    if not all(isinstance(call["arguments"], dict) for call in calls):
        raise ValueError("the arguments of a call are not an object")
    observations = tuple(_list(record, "observations"))
    if len(observations) != len(calls) or not all(isinstance(one, str) for one in observations):
        raise ValueError(f"{len(calls)} calls need as many observations, each a string; there are {len(observations)}")
    reply = record.get("reply")
    if not isinstance(reply, str | None):
        raise ValueError("reply is not a string")
    return TraceTurn(chunks, calls, observations, reply)


def _list(record: Any, key: str) -> Iterable[Any]:
    if not isinstance(record, dict) or not isinstance(record[key], list):
        raise ValueError(f"{key} is not a list")
    entries: list[Any] = record[key]
    return entries


def _text(record: Any, key: str) -> str:
    if not isinstance(record, dict) or not isinstance(record[key], str):
        raise ValueError(f"{key} is not a string" + (f"; types are {', '.join(CHUNK_TYPES)}" if key == "type" else ""))
    return str(record[key])
