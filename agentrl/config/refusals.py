"""Turns an error of pydantic into one line: the key, its value, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agentrl.config.checks import format_value
from agentrl.config.key import Group, choices, extra, group_in, limits, sentence, type_name, variants
from agentrl.config.meanings import REMOVED, guess_meaning, suggest, suggest_key
from agentrl.core.errors import UserError

# Kinds of errors that are reported last. Unknown keys come first, then missing keys and values of a wrong type.
LATER = ("literal_error", "too_short", "string_too_short", "finite_number", "rule", "greater_than", "less_than")


def refusal(error: ValidationError, cls: type[Group], known: list[str]) -> UserError:
    """Describe the first fault of `error`, raised by values of `cls`. `known` are all keys if `cls` is a run's."""
    first = min(error.errors(), key=lambda found: (found["type"] != "extra_forbidden", found["type"].startswith(LATER)))
    return UserError(" ".join(_line(first, cls, known).split()))


def _line(found: ErrorDetails, cls: type[Group], known: list[str]) -> str:
    kind, value = found["type"], found["input"]
    path, item, group = _place(cls, found["loc"])
    if kind == "extra_forbidden":
        above, _, name = path.rpartition(".")
        options = variants(cls.model_fields[above]) if above in cls.model_fields else {}
        owners = [option for option, keys in options.items() if name in keys.model_fields]
        if owners and path not in REMOVED:
            return foreign_key(path, above, owners)
        slip = not known or (above and path not in REMOVED and guess_meaning(name) is None)
        return f"unknown key {path}{suggest(name, list(group.model_fields)) if slip else suggest_key(path, known)}"
    assert item is not None
    if kind == "missing":
        return f"{path} has no value; set {path}=... ({sentence(item)})"
    if kind.startswith("union_tag"):
        chosen = value.get("name") if isinstance(value, dict) else value
        return unknown_option(path, chosen, list(variants(item)))
    if variants(item) or group_in(item.annotation):
        below = group_in(item.annotation)
        if below is not None and item.annotation is not below:  # a list of groups, or one entry of it
            form = f"{{{', '.join(f'{name}: ...' for name in below.model_fields)}}}"
            if isinstance(found["loc"][-1], int):
                return f"{path}={value!r} is not a group of keys; write it as {form}"
            return f"{path}={value!r} is not a list; write it as [{form}]"
        first = "name" if below is None else next(iter(below.model_fields))
        return f"{path}={value!r} is not a group of keys; set the keys below it, e.g. {path}.{first}=..."
    return _of_value(kind, value, path, item, isinstance(found["loc"][-1], int))


def unknown_option(group: str, name: Any, options: Sequence[str]) -> str:
    """Say that a group of keys has a `name` that is no option of it."""
    own = f" (a file of your own leaves {group}.name=custom as it is)" if "custom" in options else ""
    return f"{group}.name={_format_wrong(name)} is not a known {group}{own}{suggest(str(name), list(options))}"


def foreign_key(path: str, group: str, owners: Sequence[str]) -> str:
    """Say that a key belongs to other options of its group than the chosen one."""
    place = f"; it is a key of {group}={', '.join(owners)}" if owners else ""
    return f"{path} is not a key of the chosen {group}{place}"


def _of_value(kind: str, value: Any, path: str, item: FieldInfo, in_list: bool) -> str:
    """Say what is wrong with the value of a key, or with one entry of a list."""
    shown = "***" if extra(item)["hidden"] else format_value(value)
    if kind == "literal_error":
        return f"{path}={shown} is not a choice{suggest(str(value), list(choices(item.annotation)))}"
    if kind == "too_short" and choices(item.annotation):
        return f"{path}={shown}: name one or more of {', '.join(choices(item.annotation))}"
    if kind == "finite_number":
        return f"{path}={shown}: {'; '.join(filter(None, ('must be a finite number', limits(item))))}"
    if kind.startswith(LATER):
        return f"{path}={shown}: {limits(item)}"
    typed = "***" if extra(item)["hidden"] else _format_wrong(value)
    held = f" holds {typed} but" if in_list else f"={typed}"
    return f"{path}{held} must be of type {type_name(item.annotation)}. {sentence(item)}"


def _format_wrong(value: Any) -> str:
    """Format a value of a wrong type: a text in quotes, anything else as a person types it."""
    return repr(value) if isinstance(value, str) else format_value(value)


def _place(cls: type[Group], loc: Sequence[int | str]) -> tuple[str, FieldInfo | None, type[Group]]:
    """Find the key that pydantic's `loc` means. Returns its dotted name, its declaration (None: no such key) and class.

    A `loc` also has the option of a group, the branch of a union and the index in a list. Only the index in a list of
    groups is part of the key.
    """
    path: list[str] = []
    item: FieldInfo | None = None
    group, tagged = cls, False
    for position, step in enumerate(loc):
        inner = group_in(item.annotation) if item is not None else None
        if tagged and item is not None:  # `step` is the option, which selects the class
            group, tagged, item = variants(item)[str(step)], False, None
        elif item is None or inner is not None:
            if isinstance(step, int):
                path.append(str(step))
                continue
            group = inner or group
            path.append(str(step))
            item = group.model_fields.get(str(step))
            tagged = item is not None and bool(variants(item))
            if item is None and position == len(loc) - 1:
                break
        else:  # `step` lies within a value
            break
    return ".".join(path), item, group
