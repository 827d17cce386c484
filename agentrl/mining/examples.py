"""Calls of a tool that are written out in its own source or comments."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any


def example_calls(source: str, tree: ast.Module, function: str) -> Iterator[dict[str, Any]]:
    """Arguments of the calls with literal arguments, in the file's order."""
    definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    parameters = [argument.arg for argument in definitions[-1].args.args] if definitions else []
    constants = _constants(tree)
    text = re.sub(r"^[ \t]*#[ \t]?", "", source, flags=re.MULTILINE)
    for match in re.finditer(rf"(?<!def )\b{re.escape(function)}\(", text):
        call = _first_call(text[match.start() :])
        if call is None:
            continue
        try:
            arguments = {n: _literal(v, constants) for n, v in zip(parameters, call.args, strict=False)}
            arguments |= {k.arg: _literal(k.value, constants) for k in call.keywords if k.arg}
            yield json.loads(json.dumps(arguments))
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue  # variables or objects among its arguments


def _literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    return ast.literal_eval(node)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Literal assignments at the top of the module, which an example may use."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue  # computed
    return found


def _first_call(text: str) -> ast.Call | None:
    """The call expression that `text` begins with, if it is Python and no prose: the shortest that parses."""
    for closing in itertools.islice(re.finditer(r"\)", text), 30):
        try:
            expression = ast.parse(text[: closing.end()], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # the parenthesis of an argument, or prose
        return expression if isinstance(expression, ast.Call) else None
    return None
