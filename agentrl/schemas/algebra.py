"""Combines plain schemas: the intersection and the union of two, and the JSON types of values."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
CONSTRAINTS = frozenset(
    [
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
        *("pattern", "minItems", "maxItems", "uniqueItems", "not", "if", "contains", "propertyNames"),
        *("minProperties", "maxProperties"),
    ]
)


def intersect(first: Schema, second: Schema) -> Schema:
    """Combine two schemas that both apply to a value. If they contradict each other, the first one wins."""
    joined = {**second, **first}
    if "type" in first and "type" in second:
        common = [kind for kind in as_list(first["type"]) if is_allowed_type(kind, as_list(second["type"]))]
        common += [
            kind
            for kind in as_list(second["type"])
            if kind not in common and is_allowed_type(kind, as_list(first["type"]))
        ]
        if common:
            integral = "integer" in common and "number" in common
            joined["type"] = simplify_types([kind for kind in common if not (integral and kind == "number")])
    if "enum" in first and "enum" in second:
        joined["enum"] = [value for value in first["enum"] if value in second["enum"]] or first["enum"]
    if "properties" in first and "properties" in second:
        shared = first["properties"].keys() & second["properties"].keys()
        joined["properties"] = {**second["properties"], **first["properties"]} | {
            name: intersect(first["properties"][name], second["properties"][name]) for name in shared
        }
    if "items" in first and "items" in second:
        joined["items"] = intersect(first["items"], second["items"])
    if "required" in first and "required" in second:
        joined["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    return joined


def unite(branches: list[Schema]) -> Schema:
    """Combine schemas of which a value must satisfy one."""
    if len(branches) < 2:
        return branches[0] if branches else {}
    union: Schema = {}
    for branch in reversed(branches):
        union = {**union, **{key: value for key, value in branch.items() if key not in CONSTRAINTS}}
    if all("type" in branch for branch in branches):
        union["type"] = simplify_types([kind for branch in branches for kind in as_list(branch["type"])])
    else:
        union.pop("type", None)
    listed = [value for branch in branches for value in branch.get("enum", [])]
    open_ended = [branch for branch in branches if "enum" not in branch and branch.get("type") != "null"]
    union.pop("enum", None)
    if listed:
        union["examples" if open_ended else "enum"] = [v for i, v in enumerate(listed) if v not in listed[:i]]
    properties: Schema = {}
    for branch in branches:
        for name, schema in branch.get("properties", {}).items():
            properties[name] = unite([properties[name], schema]) if name in properties else schema
    if properties:
        union["properties"] = properties
        needs = [set(branch.get("required", [])) for branch in branches if branch.get("properties")]
        union["required"] = [name for name in properties if all(name in need for need in needs)]
    items = [branch["items"] for branch in branches if branch.get("items")]
    if items:
        union["items"] = unite(items)
    return union


def json_type(value: Any) -> str:
    """Return the JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    kinds: list[tuple[Any, str]] = [
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (list, "array"),
        (dict, "object"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def merge_types(*kinds: list[str]) -> list[str]:
    """List each type once, with null last. Readers take the first type as the likely one."""
    every = list(dict.fromkeys(kind for some in kinds for kind in some))
    return [kind for kind in every if kind != "null"] + ["null"] * ("null" in every)


def is_allowed_type(kind: str, allowed: list[str]) -> bool:
    return kind in allowed or (kind == "integer" and "number" in allowed)


def simplify_types(kinds: list[str]) -> Any:
    """Return one type as its name, and several types as a list."""
    each = merge_types(kinds)
    return each[0] if len(each) == 1 else each


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
