"""Reads transcripts made by other programs: finds their row of the bench, and the calls in the assistant's raw texts.

Nothing of a transcript is executed. Calls are read exactly as FTRL's or ToolHop's parser for Qwen reads them. Each call
is paired with the tool output that follows it. Rollouts and endpoints read their turns with the same functions
(`agentrl.chat.reading`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import json_repair

from agentrl.core.text import is_too_deep, replace_surrogates
from agentrl.core.trajectory import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Upstream strips the opening tag with str.lstrip, which removes any of these characters.
_TAG_CHARACTERS = "".join(sorted(set(OPEN)))
ROLES = ("system", "user", "assistant", "tool")
MAX_REPAIRED = 20_000  # characters: the time of a repair grows with the square of the faulty text
Calls = list[tuple[str, Any]]  # name and arguments


class BadTranscript(ValueError):
    """A line of a transcripts file is wrong. The message says what is wrong with it."""


def find_row(record: Mapping[str, Any], count: int, ids: Mapping[str, int]) -> int:
    """Return the 0-based row of the file that `record` names by "row", or else by "id". Raises BadTranscript."""
    if "row" in record:
        row = record["row"]
        if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < count:
            raise BadTranscript(f"row {row!r} is not in the file, which has rows 0 to {count - 1}")
        return row
    if "id" not in record:
        raise BadTranscript('"row" and "id" are missing; add one of them to name the row of the file')
    if str(record["id"]) not in ids:
        raise BadTranscript(f"id {record['id']!r} is not in the file")
    return ids[str(record["id"])]


def messages_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of `record` after a check. Raises BadTranscript."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise BadTranscript('"messages" is missing or not a list')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadTranscript(f"the role of message {number} is not one of {', '.join(ROLES)}")
        for key in ("content", "parsed_content"):
            if not isinstance(message.get(key), str | None):
                raise BadTranscript(f"the {key} of message {number} is not a string")
    return messages


def parse_text(text: str) -> tuple[str, Calls]:
    """Return the content and the calls (name, arguments) of an assistant's raw text, by FTRL's rule.

    The text after the first opening tag is divided into blocks at the closing tags. A block counts if it begins with
    the opening tag and holds a JSON object with a name and arguments. Other blocks are dropped silently. Therefore a
    block after other text is lost, an unclosed last block counts, and a call in a think block counts, too. Arguments
    are an object, or a string of JSON. Without any call the whole text is the content.
    """
    before, opening, rest = text.partition(OPEN)
    blocks = (block.strip() for block in (opening + rest).split(CLOSE))
    calls = _parse_blocks(_after_tag(block) for block in blocks if block.startswith(OPEN))
    return (before if calls else text).strip(), calls


def parse_toolhop(text: str) -> tuple[str, Calls]:
    """Return the content and the calls of an assistant's raw text, by ToolHop's rule.

    It is FTRL's rule with three differences: faulty JSON is repaired, text before a later block is skipped, and a name
    may be any value. The content is the text before the first opening tag, even if no call can be read.
    """
    _, opening, rest = text.partition(OPEN)
    blocks = _after_tag(opening + rest).split(CLOSE) if opening else []
    return toolhop_content(text) or "", _repair_blocks(_after_tag(b.strip()) for b in blocks if b.strip())


def _after_tag(block: str) -> str:
    return block.lstrip(_TAG_CHARACTERS).strip() if block.startswith(OPEN) else block


def _parse_blocks(blocks: Iterable[str]) -> Calls:
    calls: Calls = []
    for block in blocks:
        try:
            call = json.loads(block)
            if not isinstance(call, dict) or not call.get("name"):
                continue
            arguments = call["arguments"]
            if not isinstance(arguments, dict):
                arguments = json.loads(arguments)
            calls.append(_call(call["name"], arguments))
        except (ValueError, KeyError, TypeError, RecursionError):  # upstream: any failure drops the block
            continue
    return calls


def _repair_blocks(blocks: Iterable[str]) -> Calls:
    calls: Calls = []
    for block in blocks:
        try:
            call: Any = json_repair.loads(block) if len(block) <= MAX_REPAIRED else json.loads(block)
            arguments = call["arguments"]
            if not isinstance(arguments, dict):
                arguments = json_repair.loads(arguments)
            calls.append(_call(call["name"], arguments))
        except Exception:  # upstream: any failure drops the block, and json_repair may raise anything
            continue
    return calls


def _call(name: Any, arguments: Any) -> tuple[str, Any]:
    """Return a call with the arguments that environments take: an object or JSON text. A string becomes JSON text."""
    if is_too_deep(arguments):
        raise ValueError("nested too deeply")
    arguments = replace_surrogates(arguments)
    return replace_surrogates(str(name)), json.dumps(arguments) if isinstance(arguments, str) else arguments


def toolhop_content(text: str) -> str | None:
    """Return the content of an assistant's raw text by ToolHop's rule: the text before the first opening tag.

    None if the text begins with the tag. ToolHop's code then sets no content.
    """
    before, opening, _ = text.partition(OPEN)
    return None if opening and not before else before.strip()


def message_calls(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the calls of an assistant message: its `tool_calls` if it has any, else those in its text.

    Raises BadTranscript if `tool_calls` has another form.
    """
    parsed = message.get("tool_calls")
    if not parsed:
        return parse_text(message.get("content") or "")[1]
    try:
        return [(str(call["function"]["name"]), call["function"]["arguments"]) for call in parsed]
    except (TypeError, KeyError) as error:
        raise BadTranscript("tool_calls must be a list of {'function': {'name', 'arguments'}}") from error


def pair_calls_with_outputs(messages: Sequence[Mapping[str, Any]]) -> tuple[list[ToolCall], int]:
    """Pair every call with the output that follows it. Also return the number of calls without output in the last turn.

    Raises BadTranscript if a turn has more or fewer outputs than calls, or if their ids are in another order.
    """
    calls: list[ToolCall] = []
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    unexecuted = 0
    for turn, (start, end) in enumerate(zip(turns, [*turns, len(messages)][1:], strict=True)):
        made = message_calls(messages[start])
        outputs = [message for message in messages[start + 1 : end] if message["role"] == "tool"]
        if not outputs and end == len(messages):
            unexecuted = len(made)
            break
        if len(outputs) != len(made):
            raise BadTranscript(f"message {start} makes {len(made)} calls, but {len(outputs)} tool outputs follow it")
        for call, output in zip(messages[start].get("tool_calls") or [], outputs, strict=False):
            called, answered = call.get("id"), output.get("tool_call_id")
            if called is not None and answered is not None and called != answered:
                raise BadTranscript(f"call {called!r} of message {start} is followed by the output of {answered!r}")
        calls += [
            ToolCall(turn, name, arguments, output.get("content") or "")
            for (name, arguments), output in zip(made, outputs, strict=True)
        ]
    return calls, unexecuted


def calls_without_output(count: int) -> list[ToolCall]:
    """Make calls without an output. They count as made and solve nothing, because no tool has the name ''."""
    return [ToolCall(0, "", None)] * count
