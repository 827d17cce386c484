"""Declares keys of the configuration. The class of a key's group holds its type, choices, range and sentence.

    q: float = key("Probability of prompt-only anchoring (eq. 13).", ge=0, le=1, hint=" (the paper: 0.4)")

Values are in conf/. Help, reference and refusals describe choices and ranges from the declaration.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Place = Literal["data", "settings", "template", "weights", "written"]
UNKNOWN = object()  # null is a value


def key(
    sentence: str,
    *,
    means: tuple[str, ...] = (),
    hint: str = "",
    hidden: bool = False,
    operational: bool = False,
    record: bool = False,
    place: Place | None = None,
    older: Any = UNKNOWN,
    **how: Any,
) -> Any:
    """Declare a key. Without `default=`, conf/ or the user must give its value.

    Args:
        sentence: what the key is. It does not repeat choices and range.
        means: what each choice of a Literal means, in the order of the Literal.
        hint: text that a refusal adds after the range, e.g. " (the paper: 0.4)".
        hidden: a refusal does not show the value, which may be a secret.
        operational: the value does not change the result, only where or how a run is made. A run resumes with
            another value.
        record: agentrl writes the value. Users do not set it, and lists of keys do not show it.
        place: the value is a path, to 'data' that a run reads and records the hash of, to 'settings' that it reads, to
            a 'template' (a file; any other value is a name),
            'weights' (a directory or a GGUF file; any other value is a hub id), or to what agentrl writes ('written').
        older: the value with which runs acted that were made before there was the key. They could not be resumed or
            reported without it.
        how: ge, gt, le, lt, min_length and default, as in pydantic.Field.
    """
    traits = {"hidden": hidden, "operational": operational, "record": record, "place": place, "older": older}
    extra = {"means": means, "hint": hint, **traits}
    return Field(description=sentence, json_schema_extra=extra, **how)


class Group(BaseModel):
    """A group of keys, with values of the declared types.

    Values are converted to the type of their key: the text "3" to an int, a number to a text, an int to a float. A
    float such as 1.5 is not converted to an int.
    """

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, defer_build=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn truth values into "on" and "off" where the key is a text, because YAML reads these words as booleans.

        A truth value is never a number.
        """
        assert info.field_name is not None
        kind = type_name(cls.model_fields[info.field_name].annotation)
        return [_word(one, kind) for one in value] if isinstance(value, list) else _word(value, kind)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, item in cls.model_fields.items():
            if (means := extra(item)["means"]) and len(means) != len(choices(item.annotation)):
                raise TypeError(
                    f"{cls.__name__}.{name}: {len(means)} meanings, {len(choices(item.annotation))} choices"
                )


def _word(value: Any, kind: str) -> Any:
    if isinstance(value, bool) and "str" in kind.split():
        return "on" if value else "off"
    if isinstance(value, bool) and {"int", "float"} & set(kind.split()):
        raise PydanticCustomError("no_number", "a truth value is not a number")
    return value


@dataclass(frozen=True)
class Holds:
    """A condition on a value that is not a range, e.g. `Annotated[list[float], Holds(ascending, "must be ascending")]`.

    Refusals and the reference show `rule`, which says what the value must be.
    """

    condition: Callable[[Any], bool]
    rule: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        if not self.condition(value):
            raise PydanticCustomError("rule", "{rule}", {"rule": self.rule})
        return value


@dataclass(frozen=True)
class Among:
    """The words that a text may be, taken from a table: `Annotated[str, Among(tuple(TABLE))]`."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.words))


@dataclass(frozen=True)
class OneOf:
    """The classes that the key `name` of a group chooses from: `Annotated[Any, OneOf(ALGOS)]`."""

    classes: Mapping[str, type[Group]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(cls) for name, cls in self.classes.items()}
        return core_schema.tagged_union_schema(choices, discriminator="name")


# --- what a declaration says ------------------------------------------------------------------------------------------


def extra(item: FieldInfo) -> dict[str, Any]:
    """Return what the declaration says besides the sentence and the range."""
    assert isinstance(item.json_schema_extra, dict), "a key of the configuration is declared by key()"
    return item.json_schema_extra


def sentence(item: FieldInfo) -> str:
    """Return what help and reference say about a key: its sentence, then its choices, its range or its rule."""
    allowed, means = choices(item.annotation), extra(item)["means"]
    if means:
        tail = "; ".join(f"'{choice}': {meaning}" for choice, meaning in zip(allowed, means, strict=True))
    elif allowed:
        tail = ("Any of " if type_name(item.annotation).startswith("list") else "One of ") + ", ".join(allowed)
    else:
        tail = "; ".join(part for part in (_range(item), *_rules(item)) if part).removeprefix("must ")
        tail = tail.removeprefix("be ").removeprefix("lie ")
    return f"{item.description} {tail[:1].upper()}{tail[1:]}." if tail else str(item.description)


def limits(item: FieldInfo) -> str:
    """Return what the value of a key must be, as a refusal says it. Empty if every value of the type is valid."""
    empty = "must not be empty" if any(part.get("min_length") for part in _bounds(item)) else ""
    text = "; ".join(part for part in (empty, _range(item), *_rules(item)) if part)
    null = ", or null" if text and "null" not in text and type_name(item.annotation).endswith(" or null") else ""
    hint = extra(item)["hint"]
    return f"{text}{null}{hint}"


def _range(item: FieldInfo) -> str:
    bound = {name: value for part in _bounds(item) for name, value in part.items()}
    low = f"[{bound['ge']}" if "ge" in bound else f"({bound['gt']}" if "gt" in bound else ""
    high = f"{bound['le']}]" if "le" in bound else f"{bound['lt']})" if "lt" in bound else ""
    if low and high:
        return f"must lie in {low}, {high}"
    if "gt" in bound:
        return f"must be above {bound['gt']}"
    if "ge" in bound:
        return "must be 0 or more" if bound["ge"] == 0 else f"must be at least {bound['ge']}"
    return ""


def _bounds(item: FieldInfo) -> list[dict[str, Any]]:
    names = ("ge", "gt", "le", "lt", "min_length")
    return [{name: getattr(part, name) for name in names if hasattr(part, name)} for part in item.metadata]


def _rules(item: FieldInfo) -> list[str]:
    return [part.rule for part in item.metadata if isinstance(part, Holds)]


def choices(kind: Any) -> tuple[str, ...]:
    """Return the words that a type allows, by itself or in a list. Empty if any text is allowed, or no text."""
    if isinstance(kind, Among):
        return kind.words
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for part in get_args(kind) if (found := choices(part))), ())


def group_in(kind: Any) -> type[Group] | None:
    """Return the class of a group of keys, from the type of the group or of a list of groups. Else None."""
    if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, Group):
        return kind
    return next((found for part in get_args(kind) if (found := group_in(part)) is not None), None)


def variants(item: FieldInfo) -> Mapping[str, type[Group]]:
    """Return the classes that a group chooses from by its `name`. Empty for any other key."""
    return next((part.classes for part in item.metadata if isinstance(part, OneOf)), {})


def type_name(kind: Any) -> str:
    """Return a declared type in words: `int`, `list of float`, `mapping`, `str or null`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return "str"
    if origin is dict:
        return "mapping"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin in (Union, types.UnionType):
        named = [type_name(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*dict.fromkeys(named), *(["null"] if type(None) in arguments else [])])
    return str(getattr(kind, "__name__", kind))
