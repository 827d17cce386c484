"""Turns a model's calls into the strings that the official code evaluates.


Text of the model is never copied into such a string. A name must be one of the episode's functions, the name of an
argument must be an identifier, and `repr` writes the values that JSON held.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentrl.core.text import is_too_deep, replace_surrogates

_BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
# Replaces a refused call. The official code finds no function of this name, and goes on as with any unknown name.
REFUSED = "_no_such_function()"
# The official code has a list of forbidden names, with an error text of its own.
FORBIDDEN = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")


class RefusedCall(ValueError):
    """The call is not evaluated. The model reads the message."""


def decode_text(text: str) -> list[dict[str, Any]]:
    """Read the calls of one assistant text as the official Qwen FC handler does. Empty if there are none.

    Only the text after the last `</think>` counts. A block needs newlines inside its tags, and a block that is not JSON
    is skipped.
    """
    calls = []
    for block in _BLOCK.findall(without_thought(text)):
        try:
            calls.append(json.loads(block))
        except (ValueError, RecursionError):  # not JSON: the official decoder skips it, too
            continue
    return calls


def read_turn(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """Return the content and the calls of one assistant text. All is content if the official decoder finds no step."""
    step = decode_calls(decode_text(text)) or []
    return (text.partition("<tool_call>")[0].strip() if step else text), step


def without_thought(text: str) -> str:
    """Return what the official Qwen FC handler keeps of an assistant text: all after the last `</think>`."""
    return text.rpartition("</think>")[2].lstrip("\n") if "</think>" in text else text


def decode_calls(calls: Sequence[Any]) -> list[tuple[str, dict[str, Any]]] | None:
    """Return the names and arguments of one step, or None if the official decoder fails on one of its calls.

    The scorer skips a step that cannot be decoded. In the loop such a step ends the user's turn.
    """
    step = []
    for call in calls:
        if not isinstance(call, Mapping) or "name" not in call or "arguments" not in call:
            return None
        if isinstance(call["name"], list | dict):  # the decoder uses the name as a dictionary key, which fails
            return None
        arguments = call["arguments"]
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):  # not JSON
                return None
        if not isinstance(arguments, Mapping) or is_too_deep(arguments):
            return None
        step.append((replace_surrogates(str(call["name"])), replace_surrogates(dict(arguments))))
    return step


def call_string(name: str, arguments: Mapping[str, Any], known: Collection[str]) -> str:
    """Return the Python source of a call, e.g. `cd(folder='temp')`. Raises RefusedCall with the official error text."""
    stripped = name.strip()
    if stripped not in known:
        if stripped in FORBIDDEN:
            raise RefusedCall(f"Function call {stripped} is not allowed.")
        raise RefusedCall(f"name {stripped.partition('.')[0]!r} is not defined")
    for key in map(str.strip, arguments):  # Python allows blanks around a keyword
        if not key.isidentifier() or keyword.iskeyword(key):
            raise RefusedCall("invalid syntax (<string>, line 1)")
    return f"{stripped}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"


def safe_string(name: str, arguments: Mapping[str, Any], known: Collection[str]) -> str:
    """Return what `call_string` does, or a call that fails in place of a refused one. The verdict is the same."""
    try:
        return call_string(name, arguments, known)
    except RefusedCall:
        return REFUSED
