"""Collect the values that an argument may take: values named in the texts, in the forms that a tool's schema allows."""

from __future__ import annotations

import calendar
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agentrl.mining.grounding import Knowledge
from agentrl.schemas.plain import allows

Path = tuple[str | int, ...]
ANY = ("string", "number")  # the types assumed for a value without one
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]|(?<!\w)'([^']+)'(?!\w)")
_PROPER = re.compile(r"\b[A-Z][\w'’.-]*(?:\s+(?:(?:of|the|de|van|von|and|in|for|to|'s)\s+)*[A-Z0-9][\w'’.-]*)*")
_OPERANDS = re.compile(r"[\w.'’-]+(?=\s+(?:and|than|or)\s)|(?<=\band )[\w.'’-]+|(?<=\bthan )[\w.'’-]+")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_CONNECTED = re.compile(r"\s+(?:and|in|for|to)\s+")
_ASKED = re.compile(r"^(?:What|Which|Who|Whose|When|Where|How|The|A|An|In)\b\s*")


def entities(text: str) -> list[str]:
    """Return quoted spans, runs of capitalised words (without the question word), and numbers, longest first."""
    quoted = [first or second for first, second in _QUOTED.findall(text)]
    proper = [re.sub(r"['’]s$", "", _ASKED.sub("", span)).rstrip(".") for span in _PROPER.findall(text)]
    whole = sorted({*quoted, *proper} - {""}, key=lambda span: (-len(span), span))
    parts = [part for span in whole for part in _CONNECTED.split(span) if part != span]
    return [*whole, *dict.fromkeys(part for part in parts if part not in whole), *_NUMBER.findall(text)]


def operands(text: str) -> list[str]:
    """Return the words on either side of "and", "or" and "than"."""
    return _OPERANDS.findall(text)


def leaves_of_json(text: str) -> list[Any]:
    """Return the strings and numbers inside a result that is JSON, in order."""
    try:
        stack, found = [json.loads(text)], []
    except (ValueError, RecursionError):  # the result is plain text
        return []
    while stack:
        value = stack.pop()
        if isinstance(value, dict | list):
            stack.extend(reversed(value.values() if isinstance(value, dict) else value))
        elif not isinstance(value, bool | None):
            found.append(value)
    return found


def suggest_values(knowledge: Knowledge, need: str) -> list[Any]:
    """Return the values that the texts suggest, likeliest first: of the need, of later results, of the question."""
    numbers = _NUMBER.findall(need)
    found: list[Any] = [*operands(need), operands(need), numbers, *entities(need)]
    for _, text in reversed(knowledge.texts[1:]):
        parts = leaves_of_json(text)
        found += [*parts, *([] if len(parts) == 1 else [text, parts]), *entities(text)]
        found += [piece for part in parts for piece in re.split(r"[,;:]\s*|\s", str(part)) if piece]
    question = knowledge.texts[0][1]
    found += entities(question)
    found += [form for v in found if isinstance(v, str) and len(v) == 1 for form in (v.lower(), v.upper())]
    days = knowledge.days()
    found += [form for day in days for form in date_forms(day)]
    found += list(dict.fromkeys(number for day in days for number in (day.year, day.month, day.day)))
    found += [need, question]
    return list({json.dumps(value): value for value in found if value != []}.values())


def date_forms(day: datetime.date) -> Iterator[str]:
    """Yield the usual forms of a date, and of its month."""
    name = calendar.month_name[day.month]
    yield from (f"{day:%Y-%m-%d}", f"{day.year}-{day.month}-{day.day}", f"{name} {day.day}, {day.year}")
    yield from (f"{day.day} {name} {day.year}", f"{day:%m/%d/%Y}", f"{day:%d/%m/%Y}")
    yield from (f"{day:%Y-%m}", f"{name} {day.year}", str(day.year))


# -- schemas ---------------------------------------------------------------------------------------------------------


def items_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an array's items."""
    items = schema.get("items")
    return items if isinstance(items, dict) else {}


def schema_at(parameters: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the schema of the value at a path into the arguments; empty if there is none."""
    schema: Any = {"properties": parameters}
    for part in path:
        schema = items_schema(schema) if isinstance(part, int) else (schema.get("properties") or {}).get(part)
        if not isinstance(schema, dict):
            return {}
    return dict(schema)


def own_values(schema: Mapping[str, Any]) -> list[Any]:
    """Return the schema's own values: enums (also those of its items), examples and the default."""
    default = [schema["default"]] if schema.get("default") is not None else []
    examples = schema["examples"] if isinstance(schema.get("examples"), list) else []
    return [*(schema.get("enum") or []), *(items_schema(schema).get("enum") or []), *examples, *default]


def examples_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the quoted values in a parameter's description."""
    return [first or second for first, second in _QUOTED.findall(str(schema.get("description", "")))]


def fit_values(values: Iterable[Any], schema: Mapping[str, Any], limit: int | None = None) -> list[Any]:
    """Return the values that the schema's type allows, converted to that type, without repetition.

    Values outside its bounds, patterns and lengths come last, because tools often accept more than their schemas say.
    """
    fitted: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for value in [*([False, True] if "boolean" in types_of(schema) else []), *values]:
        for form in convert(value, schema):
            (fitted if allows(schema, form) else outside).setdefault(json.dumps(form, sort_keys=True), form)
        if limit is not None and len(fitted) >= limit:
            break
    found = [*fitted.values(), *outside.values()][:limit]
    if "number" in (*types_of(schema), *types_of(items_schema(schema))):  # some tools give 289.0 only for 17.0
        found += [form for form in map(_as_float, found[:3]) if json.dumps(form) not in fitted]
    return found


def _as_float(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_float(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_date(name: str, schema: Mapping[str, Any]) -> bool:
    """Check whether a parameter takes a day as YYYY-MM-DD."""
    told = f"{schema.get('format', '')} {schema.get('description', '')}".lower()
    return "string" in types_of(schema) and (
        "yyyy-mm-dd" in told or schema.get("format") == "date" or name.endswith("date")
    )


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the types of a plain schema, likeliest first; a schema that names none may be any type."""
    kind = schema.get("type")
    if not kind:
        return ["object"] if schema.get("properties") else ["array"] if "items" in schema else list(ANY)
    return [str(k) for k in kind] if isinstance(kind, list) else [str(kind)]


def convert(value: Any, schema: Mapping[str, Any]) -> list[Any]:
    """Return the value in each form that the schema's type allows; empty if there is none."""
    return [form for kind in types_of(schema) for form in _convert(value, kind, schema)]


def _convert(value: Any, kind: str, schema: Mapping[str, Any]) -> list[Any]:
    if kind == "array":
        items = items_schema(schema)
        if not isinstance(value, list):
            return [[form] for form in convert(value, items)]
        converted = [convert(item, items)[:1] for item in value]
        return [[form for forms in converted for form in forms]] if value and all(converted) else []
    if kind == "object":
        return [value] if isinstance(value, dict) else []
    if kind == "boolean":
        return [value] if isinstance(value, bool) else []
    if isinstance(value, list | dict | bool | None) or kind not in ("string", "integer", "number"):
        return []
    text = str(value).strip().strip('"')
    if kind == "string":
        return [text] if text else []
    if not re.fullmatch(r"-?\d{1,15}(\.\d+)?", text):
        return []
    number = float(text)
    if number == int(number) and (kind == "integer" or "." not in text):
        return [int(number)]
    return [number] if kind == "number" else []


def product_by_rank(lists: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the product of lists; combinations with the smallest sum of positions come first."""
    if not all(lists):
        return
    for total in range(sum(len(values) - 1 for values in lists) + 1):
        yield from _rank(lists, total)


def _rank(lists: list[list[Any]], total: int) -> Iterator[tuple[Any, ...]]:
    if not lists:
        if total == 0:
            yield ()
        return
    for rank, value in enumerate(lists[0][: total + 1]):
        for rest in _rank(lists[1:], total - rank):
            yield (value, *rest)


# -- arguments as trees ----------------------------------------------------------------------------------------------


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and value of every scalar in the arguments."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def value_at(value: Any, path: Path) -> Any:
    """Return the value at a path; None if there is none."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def replace_at(value: Any, path: Path, new: Any) -> Any:
    """Return a copy with another value at a path. The last part of the path is made if it is missing."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else {}
    inner = value_at(copy, path[:1])
    part = path[0]
    if isinstance(copy, list):
        copy[int(part)] = replace_at(inner, path[1:], new)
    else:
        copy[part] = replace_at(inner, path[1:], new)
    return copy


def remove_at(value: Any, path: Path) -> Any:
    """Return a copy without the value at a path, which must exist."""
    if len(path) == 1:
        return {key: item for key, item in value.items() if key != path[0]}
    return replace_at(value, path[:1], remove_at(value_at(value, path[:1]), path[1:]))
