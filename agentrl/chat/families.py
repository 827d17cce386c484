"""Reads the calls of families that write them in other forms than TRL's parser for their template expects.

TRL's parsers read what the templates write. Models also write what their makers documented.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from agentrl.chat.transcripts import Calls

LINE = re.compile(r"^[ \t]*(?=\{)", re.M)  # a line that begins with an object
BETWEEN = re.compile(r"[\s;,]*")  # between two calls of Llama
TAGS = ("<|tool_call_start|>", "<|tool_call_end|>")  # special tokens in which calls stand
LFM2_CALLS = re.compile(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|$)", re.S)

JSON_NAMES = {"true": True, "false": False, "null": None}

Read = Callable[[str], tuple[str, Calls] | None]  # content and calls of a text; None if it holds no such calls


def family_reader(parser: dict[str, Any]) -> Read | None:
    """Return the reader for the family of one of TRL's parsers. None if TRL's own suffices."""
    calls = parser.get("fields", {}).get("tool_calls", {})
    opening = str(calls.get("open") or calls.get("open_pattern") or "")
    if '"parameters"' in opening:
        return read_llama
    return read_lfm2 if "tool_call_start" in opening else None


def read_llama(text: str) -> tuple[str, Calls] | None:
    """Read `{"name": ..., "parameters": {...}}`, one or several, up to the end of the text.

    Llama 3.1 and 3.2 also write `<|python_tag|>` before it, a `"type"`, and `"function"` for the name.
    """
    text = text.replace("<|python_tag|>", "")
    place = 0
    for line in LINE.finditer(text):
        if line.end() < place:  # inside what was read before, which did not go on to the end
            continue
        calls, place = list[tuple[str, Any]](), line.end()
        while place < len(text):
            try:
                value, place = json.JSONDecoder().raw_decode(text, place)
            except (ValueError, RecursionError):
                break
            call = _llama_call(value)
            if call is None:
                break
            calls.append(call)
            place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches the empty text, too
        else:
            return text[: line.start()].strip(), calls
    return None


def _llama_call(value: Any) -> tuple[str, Any] | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name", value.get("function")), value.get("parameters", value.get("arguments"))
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def read_lfm2(text: str) -> tuple[str, Calls] | None:
    """Read `<|tool_call_start|>[name(key='value', other=3)]<|tool_call_end|>`: Python calls with literal arguments."""
    blocks = LFM2_CALLS.findall(text)
    calls: Calls = []
    for block in blocks:
        try:
            listed = ast.parse(block.strip(), mode="eval").body
            made = [_python_call(one) for one in (listed.elts if isinstance(listed, ast.List) else [listed])]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        calls += made
    return (LFM2_CALLS.sub("", text).strip(), calls) if calls else None


def _python_call(node: ast.expr) -> tuple[str, Any]:
    """Return name and arguments of a call. Raises ValueError for anything else, e.g. `f(x)` or `f(a=g())`."""
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("not a call with named arguments")
    arguments: dict[str, Any] = {}
    for one in node.keywords:
        if one.arg is None:
            raise ValueError("an argument without a name")
        arguments[one.arg] = _literal(one.value)
    return ast.unparse(node.func), arguments


def _literal(node: ast.expr) -> Any:
    """Return a literal; `true`, `false` and `null` of JSON are read too. Raises ValueError."""
    if isinstance(node, ast.Name) and node.id in JSON_NAMES:
        return JSON_NAMES[node.id]
    if isinstance(node, ast.List):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(key)): _literal(one) for key, one in zip(node.keys, node.values, strict=True) if key}
    value = ast.literal_eval(node)
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:  # bytes, a set, a complex number
        raise ValueError(str(error)) from error
    return value
