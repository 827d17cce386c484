"""Rewrites the schema of a tool's parameters into one plain form.

Benches use `$ref`, `anyOf`, `allOf`, `const`, boolean schemas, and much that is not JSON Schema: Python's type names,
`required: true`, a list of properties. Miners and parsers need one form. A plain schema uses `type`, `enum`,
`properties`, `required` and `items`, and keeps the other keywords. Prompts keep the author's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from agentrl.schemas.algebra import (
    CONSTRAINTS,
    Schema,
    as_list,
    intersect,
    json_type,
    merge_types,
    simplify_types,
    unite,
)
from agentrl.schemas.names import schema_of_name, schema_of_type

MERGED = ("$ref", "allOf", "anyOf", "oneOf", "const", "nullable", "prefixItems")
KEYWORDS = frozenset(
    [
        *(*MERGED, *CONSTRAINTS, "type", "properties", "required", "items", "enum", "default", "additionalProperties"),
        *("$defs", "definitions"),
    ]
)
MAX_DEPTH = 24  # deepest nesting of schemas, which stops recursive references
MAX_READ = 5000  # schemas read of one document, which stops references that branch without end


def plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function {name, description, parameters} with plain parameters."""
    return {**tool, "parameters": plain_parameters(tool.get("parameters"))}


def plain_parameters(parameters: Any) -> Schema:
    """Return the plain schema of a function's parameters."""
    if isinstance(parameters, Mapping) and parameters and not (KEYWORDS & parameters.keys()):
        if all(isinstance(value, Mapping) for value in parameters.values()):  # "properties" left out
            parameters = {"properties": parameters}
    elif isinstance(parameters, list):
        parameters = {"properties": parameters}
    return Reader(parameters).make_plain(parameters)


def make_renderable(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool {"type": "function", "function": ...} as its author wrote it.

    Its parameters become plain if some chat templates could not iterate over them.
    """
    function = tool["function"]
    return {**tool, "function": dict(function) if is_well_formed(function.get("parameters")) else plain_tool(function)}


def is_well_formed(schema: Any) -> bool:
    """Whether `properties` is an object and `required` a list, at every depth."""
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping) or not isinstance(schema.get("required", []), list):
        return False
    return all(is_well_formed(value) for value in [*properties.values(), schema.get("items")])


def allows(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value satisfies the bounds, patterns and lengths of a plain schema. Invalid bounds allow all values."""
    bounds = {key: schema[key] for key in CONSTRAINTS & schema.keys()}
    if not bounds:
        return True
    try:
        return bool(Draft202012Validator(bounds).is_valid(value))
    except Exception:  # jsonschema raises many kinds of errors for invalid bounds such as minimum: "three"
        return True


class Reader:
    """Reads the schemas of one document. References start from its root."""

    def __init__(self, root: Any) -> None:
        root = dict(root) if isinstance(root, Mapping) else {}
        if not isinstance(root.get("$id"), str):
            root.pop("$id", None)
        resource = DRAFT202012.create_resource(root)
        self._read = 0
        self._resolver = Registry().resolver_with_root(resource)

    def make_plain(self, schema: Any, seen: tuple[str, ...] = ()) -> Schema:
        """Return the plain form. `seen` has an entry for each level and reference on the way here, to end recursion."""
        self._read += 1
        if len(seen) > MAX_DEPTH or self._read > MAX_READ:
            return {}
        if isinstance(schema, list):  # ["integer", "null"], or a choice of schemas
            schema = {"anyOf": schema} if any(isinstance(one, Mapping) for one in schema) else {"type": schema}
        elif isinstance(schema, str):  # the name of a type, otherwise a description
            schema = schema_of_name(schema) or {"description": schema}
        if not isinstance(schema, Mapping):  # true or null, which constrain nothing
            return {}
        seen = (*seen, "")
        read = {key: value for key, value in schema.items() if key not in MERGED}
        self._own(read, seen)
        for part in self._parts(schema, seen):
            read = intersect(read, part)
        for choice in ("anyOf", "oneOf"):
            if isinstance(schema.get(choice), list) and schema[choice]:
                branches = [self.make_plain(one, seen) for one in schema[choice] if one is not False]
                read = intersect(read, unite(branches))
        if schema.get("nullable") is True and read.get("type"):
            read["type"] = merge_types(as_list(read["type"]), ["null"])
        return read

    def _own(self, read: Schema, seen: tuple[str, ...]) -> None:
        """Rewrite the keywords of the schema itself, without its references and branches."""
        if "type" in read:
            kinds = schema_of_type(read.pop("type"))
            for key, value in kinds.items():
                read.setdefault(key, value)
        if "enum" in read and not isinstance(read["enum"], list):
            read["enum"] = list(read["enum"]) if isinstance(read["enum"], Mapping) else as_list(read["enum"])
        if read.get("enum") == []:  # no value would be valid: the author meant no restriction
            del read["enum"]
        if "enum" in read and "type" not in read:
            read["type"] = simplify_types([json_type(value) for value in read["enum"]])
        if "items" in read:
            items = read["items"]
            read["items"] = (
                unite([self.make_plain(one, seen) for one in items])
                if isinstance(items, list)
                else self.make_plain(items, seen)
            )
        if "properties" in read or "required" in read:
            given = index_by_name(read.get("properties"))
            needed = required_names(read.get("required"), given)
            if "properties" in read:
                read["properties"] = {
                    name: self._property(value, seen) for name, value in given.items() if value is not False
                }
            if needed or isinstance(read.get("required"), list):
                read["required"] = needed
            else:
                read.pop("required", None)

    def _property(self, schema: Any, seen: tuple[str, ...]) -> Schema:
        read = self.make_plain(schema, seen)
        if not isinstance(read.get("required", []), list) or "properties" not in read:
            read.pop("required", None)  # "required": true belongs to the parent
        return read

    def _parts(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> list[Schema]:
        """Return the plain forms of all that also applies: the reference, `allOf`, `const` and `prefixItems`."""
        parts = []
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            parts.append(self.make_plain(self._target(reference), (*seen, reference)))
        if isinstance(schema.get("allOf"), list):
            parts += [self.make_plain(one, seen) for one in schema["allOf"]]
        if "const" in schema:
            parts.append({"enum": [schema["const"]], "type": json_type(schema["const"])})
        if isinstance(schema.get("prefixItems"), list):
            parts.append(
                {"type": "array", "items": unite([self.make_plain(one, seen) for one in schema["prefixItems"]])}
            )
        return parts

    def _target(self, reference: str) -> Any:
        try:
            return self._resolver.lookup(reference).contents
        except (Unresolvable, AttributeError, TypeError, ValueError):  # the target is missing, or is not a schema
            return {}


def index_by_name(properties: Any) -> dict[str, Any]:
    """Return properties as an object. Authors also write a list of names, of named schemas or of one-key objects."""
    if isinstance(properties, Mapping):
        return {str(name): schema for name, schema in properties.items()}
    found: dict[str, Any] = {}
    for one in properties if isinstance(properties, list) else ():
        if isinstance(one, str):
            found[one] = {}
        elif isinstance(one, Mapping) and isinstance(one.get("name"), str):
            own = {key: value for key, value in one.items() if key not in ("name", "schema")}
            found[one["name"]] = own | (one["schema"] if isinstance(one.get("schema"), dict) else {})
        elif isinstance(one, Mapping):
            found |= {str(name): schema for name, schema in one.items()}
    return found


def required_names(needed: Any, properties: Mapping[str, Any]) -> list[str]:
    """Return the names of the required properties: the listed ones (`true` means all), and those marked as required."""
    if needed is True:
        listed = list(properties)
    elif isinstance(needed, list):
        listed = [str(name) for name in needed]
    else:
        listed = [needed] if isinstance(needed, str) else []
    own = [
        name for name, schema in properties.items() if isinstance(schema, Mapping) and schema.get("required") is True
    ]
    return list(dict.fromkeys([*listed, *own]))
