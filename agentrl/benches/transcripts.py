"""Transcripts made elsewhere: which row they belong to, and what their raw assistant texts say to the official parsers.

Nothing of a transcript is executed. Calls are read from the assistant's texts as FTRL's parser for Qwen reads them,
quirks included, and each is paired with the tool output that follows in the transcript.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.trajectory import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Upstream strips the opening tag with str.lstrip, which takes its argument for a set of characters.
_TAG_CHARACTERS = "".join(sorted(set(OPEN)))
ROLES = ("system", "user", "assistant", "tool")


class BadTranscript(ValueError):
    """What is wrong with a line of a transcripts file."""


def find_row(record: Mapping[str, Any], count: int, ids: Mapping[str, int]) -> int:
    """0-based row of the file that `record` names by "row" or else by "id". Raises BadTranscript."""
    if "row" in record:
        row = record["row"]
        if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < count:
            raise BadTranscript(f"row {row!r} is not in the file, which has rows 0 to {count - 1}")
        return row
    if "id" not in record:
        raise BadTranscript('neither "row" nor "id" says which row of the file it belongs to')
    if str(record["id"]) not in ids:
        raise BadTranscript(f"id {record['id']!r} is not in the file")
    return ids[str(record["id"])]


def messages_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checked messages of `record`. Raises BadTranscript."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise BadTranscript('"messages" is missing or no list')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadTranscript(f"message {number} has no role among {', '.join(ROLES)}")
        for key in ("content", "parsed_content"):
            if not isinstance(message.get(key), str | None):
                raise BadTranscript(f"the {key} of message {number} is no string")
    return messages


def parse_text(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls (name, arguments) of an assistant's raw text, by FTRL's rule.

    Blocks are the pieces between closing tags from the first opening tag on. A block counts if it begins with the tag
    and holds a JSON object with a name and arguments; all others are dropped without a word. So text between two
    blocks loses the second, an unclosed last block counts, and so does a call inside a think block. Arguments that
    are no object must be a string of JSON. Without any call the whole text is content.
    """
    before, opening, rest = text.partition(OPEN)
    calls: list[tuple[str, Any]] = []
    for block in (opening + rest).split(CLOSE):
        if not block.strip().startswith(OPEN):
            continue
        try:
            call = json.loads(block.strip().lstrip(_TAG_CHARACTERS).strip())
            if not isinstance(call, dict) or not call.get("name"):
                continue
            arguments = call["arguments"]
            if not isinstance(arguments, dict):
                arguments = json.loads(arguments)
        except (ValueError, KeyError, TypeError, RecursionError):  # upstream: any failure drops the block
            continue
        calls.append((str(call["name"]), arguments))
    return (before if calls else text).strip(), calls


def toolhop_content(text: str) -> str | None:
    """Content of an assistant's raw text by ToolHop's rule: what stands before the first call, parsable or not.

    None where the text begins with the call, which ToolHop's code takes for no content at all.
    """
    before, opening, _ = text.partition(OPEN)
    return None if opening and not before else before.strip()


def message_calls(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Calls of an assistant message: its `tool_calls` where it has been parsed already, else those in its text."""
    parsed = message.get("tool_calls")
    if not parsed:
        return parse_text(message.get("content") or "")[1]
    try:
        return [(str(call["function"]["name"]), call["function"]["arguments"]) for call in parsed]
    except (TypeError, KeyError) as error:
        raise BadTranscript("tool_calls must be a list of {'function': {'name', 'arguments'}}") from error


def executed_calls(messages: Sequence[Mapping[str, Any]]) -> tuple[list[ToolCall], int]:
    """Every call with the output that follows it, and how many calls of the last turn were never executed.

    Raises BadTranscript where a turn has another number of outputs than calls, or ids that tell of another order.
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
