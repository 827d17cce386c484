"""Find example calls of a tool that are written in its own source or comments."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any


def example_calls(source: str, tree: ast.Module, function: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments of all calls with literal arguments, in the order of the file."""
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
            continue  # its arguments hold variables or objects


def _literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    return ast.literal_eval(node)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Return the literal assignments at the top of the module. An example may use them."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue  # the value is computed
    return found


def _first_call(text: str) -> ast.Call | None:
    """Return the call expression that `text` begins with: the shortest prefix that parses; None if it is not Python."""
    for closing in itertools.islice(re.finditer(r"\)", text), 30):
        try:
            expression = ast.parse(text[: closing.end()], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # the parenthesis closes an argument, or this is prose
        return expression if isinstance(expression, ast.Call) else None
    return None
