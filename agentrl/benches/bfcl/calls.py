"""Between a model's calls and the strings that the official code evaluates.

Model text is never part of such a string: a name must be one of the episode's functions, an argument's name must be an
identifier, and values are written by `repr` from what JSON held.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentrl.core.text import too_deep, well_formed

_BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
# Stands for a refused call: the official code finds no function of that name and goes on, as with any unknown name.
REFUSED = "_no_such_function()"
# The official code refuses these names by a list of its own, with its own words.
FORBIDDEN = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")


class RefusedCall(ValueError):
    """The call is not evaluated; the message is what the model reads."""


def decode_text(text: str) -> list[dict[str, Any]]:
    """Calls of one assistant text, as the official Qwen FC handler reads it; empty where there are none.

    Only what follows the last `</think>` counts, a block needs newlines inside its tags, and one that is no JSON is
    skipped.
    """
    calls = []
    for block in _BLOCK.findall(without_thought(text)):
        try:
            calls.append(json.loads(block))
        except (ValueError, RecursionError):  # no JSON, as a model may write it: the official decoder skips it too
            continue
    return calls


def read_turn(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls of one assistant text; all of it is content where the official decoder gives no step."""
    step = decode_calls(decode_text(text)) or []
    return (text.partition("<tool_call>")[0].strip() if step else text), step


def without_thought(text: str) -> str:
    """What the official Qwen FC handler keeps of an assistant text: all behind its last `</think>`."""
    return text.rpartition("</think>")[2].lstrip("\n") if "</think>" in text else text


def decode_calls(calls: Sequence[Any]) -> list[tuple[str, dict[str, Any]]] | None:
    """Names and arguments of one step, or None where the official decoder fails on any of its calls.

    A step that does not decode is skipped by the scorer and ends the user's turn in the loop.
    """
    step = []
    for call in calls:
        if not isinstance(call, Mapping) or "name" not in call or "arguments" not in call:
            return None
        if isinstance(call["name"], list | dict):  # no key of a dictionary, which the decoder makes of it
            return None
        arguments = call["arguments"]
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):  # no JSON, as a model may write it
                return None
        if not isinstance(arguments, Mapping) or too_deep(arguments):
            return None
        step.append((well_formed(str(call["name"])), well_formed(dict(arguments))))
    return step


def call_string(name: str, arguments: Mapping[str, Any], known: Collection[str]) -> str:
    """Python source of a call, e.g. `cd(folder='temp')`. Raises RefusedCall, worded like the official error."""
    stripped = name.strip()
    if stripped not in known:
        if stripped in FORBIDDEN:
            raise RefusedCall(f"Function call {stripped} is not allowed.")
        raise RefusedCall(f"name {stripped.partition('.')[0]!r} is not defined")
    for key in map(str.strip, arguments):  # blanks around a keyword are good Python
        if not key.isidentifier() or keyword.iskeyword(key):
            raise RefusedCall("invalid syntax (<string>, line 1)")
    return f"{stripped}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"


def safe_string(name: str, arguments: Mapping[str, Any], known: Collection[str]) -> str:
    """As `call_string`, with a call that fails in the place of a refused one: its verdict is the same."""
    try:
        return call_string(name, arguments, known)
    except RefusedCall:
        return REFUSED
