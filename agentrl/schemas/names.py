"""Reads names of types as authors write them: JSON Schema's names, Python's annotations, names of other languages."""

from __future__ import annotations

import ast
import re
from typing import Any

from agentrl.schemas.algebra import Schema, as_list, json_type, merge_types, simplify_types, unite

NAMES = {
    "string": ("string", "str", "text", "char", "varchar", "bytes", "uuid", "url", "uri", "email"),
    "integer": ("integer", "int", "int32", "int64", "long", "short"),
    "number": ("number", "float", "double", "decimal", "numeric", "real", "complex"),
    "boolean": ("boolean", "bool"),
    "array": ("array", "list", "tuple", "set", "frozenset", "sequence", "iterable", "vector"),
    "object": ("object", "dict", "map", "mapping", "hashmap", "json", "struct"),
    "null": ("null", "none", "nonetype"),
}
TYPES = {name: kind for kind, names in NAMES.items() for name in names}
DAYS = ("date", "datetime", "date-time", "time")


def schema_of_type(name: Any) -> Schema:
    """Return the plain schema of a `type`, which is a name or a list of names. Returns {} if no name is known."""
    if not isinstance(name, list):
        return schema_of_name(name) if isinstance(name, str) else {}
    read = [schema_of_name(one) if isinstance(one, str) else {} for one in name]
    known = [one for one in read if "type" in one]
    kinds = merge_types(*(as_list(one["type"]) for one in known))
    if not kinds:
        return {}
    return {**unite(known), "type": kinds}


def schema_of_name(name: str) -> Schema:
    """Return the plain schema of the name of a type. Returns {} if the name is unknown."""
    word = name.strip().lower()
    if word in DAYS:
        return {"type": "string", "format": "date" if word == "date" else "date-time"}
    if word in TYPES:
        return {"type": TYPES[word]}
    if of := re.fullmatch(r"(?:array|list)s? of (\w+?)s?", word):
        return {"type": "array"} | ({"items": inner} if (inner := schema_of_name(of[1])) else {})
    try:
        return schema_of_annotation(ast.parse(name.strip().removesuffix("?"), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # free text
        return {}


def schema_of_annotation(node: ast.expr) -> Schema:
    """Return the plain schema of a Python annotation: `list[str]`, `Optional[int]`, `int | None`, `Literal["a"]`."""
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Attribute):
        return schema_of_annotation(ast.Name(node.attr))
    if isinstance(node, ast.Name):
        kind = TYPES.get(node.id.lower())
        return {"type": kind} if kind else {}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return unite([schema_of_annotation(node.left), schema_of_annotation(node.right)])
    if not isinstance(node, ast.Subscript):
        return {}
    head = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head.lower() == "literal":
        values = [ast.literal_eval(one) for one in inner]
        return {"enum": values, "type": simplify_types([json_type(value) for value in values])}
    parts = [schema_of_annotation(one) for one in inner]
    if head.lower() in ("optional", "union"):
        return unite([*parts, *([{"type": "null"}] if head.lower() == "optional" else [])])
    kind = TYPES.get(head.lower())
    if kind == "array":
        return {"type": "array", "items": unite([one for one in parts if one])}
    return {"type": kind} if kind else parts[0] if head.lower() == "annotated" else {}
