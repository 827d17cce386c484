"""Change arguments, one at a time, so that a comparison which a run made would turn out otherwise.

An event of `agentrl.mining.probe` says that the code saw `left` and wanted `right`. A change puts the wanted value
where the seen value came from: into the parameters that flow there, at the part that still holds the seen value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.mining.grounding import Knowledge
from agentrl.mining.instrument import Site
from agentrl.mining.values import (
    Path,
    convert,
    fit_values,
    items_schema,
    leaves,
    own_values,
    replace_at,
    schema_at,
    types_of,
    value_at,
)

Arguments = dict[str, Any]
MAX_ALTERNATIVES = 40  # alternatives taken from one container
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Mutator:
    """Makes changes for one tool. If `grounded`, wanted values that neither a text nor the schema holds are dropped."""

    def __init__(self, parameters: Mapping[str, Any], knowledge: Knowledge, pool: list[Any], grounded: bool) -> None:
        self.parameters, self.knowledge, self.pool, self.grounded = parameters, knowledge, pool, grounded
        self._known: dict[tuple[str, str], bool] = {}
        self._surfaces: dict[str, str] = {}

    def changes(self, arguments: Arguments, event: list[Any], site: Site) -> Iterator[Arguments]:
        """Yield arguments that differ from the given ones in what the event compared, likeliest first."""
        _, kind, left, right, result, _ = event
        if kind in ("==", "!=") and result != (kind == "=="):
            yield from self._want(arguments, left, right, site.left)
            yield from self._want(arguments, right, left, site.right)
        elif kind in ("in", "not in") and result != (kind == "in"):
            yield from self._member(arguments, left, right, site)
        elif kind == "lookup" and not result:
            for key in right[:MAX_ALTERNATIVES]:
                yield from self._key(arguments, left, key, site)
        elif kind == "truth":
            yield from self._toggle(arguments, result, site.left)
        elif kind in _ORDER and not (left is None or right is None):
            yield from self._reorder(arguments, left, right, kind, result, site)
        elif kind in ("startswith", "endswith") and not result:
            fitting = [v for v in self.pool if isinstance(v, str) and getattr(v.lower(), kind)(str(right).lower())]
            for wanted in [right, *fitting]:
                yield from self._want(arguments, left, wanted, site.left)
            yield from self._want(arguments, right, left, site.right)
        elif kind in ("match", "fullmatch", "search", "strptime") and isinstance(left, str):
            for wanted in self._format(kind, str(right)):
                yield from self._want(arguments, left, wanted, site.left)

    # -- one rule for each kind of comparison ------------------------------------------------------------------------

    def _member(self, arguments: Arguments, left: Any, right: Any, site: Site) -> Iterator[Arguments]:
        if isinstance(right, list):
            for wanted in right[:MAX_ALTERNATIVES]:
                yield from self._key(arguments, left, wanted, site)
            if site.right:
                yield from self._want(arguments, right, [*right, left], site.right)
                yield from self._want(arguments, right, [left], site.right)
                yield from self._contain(arguments, right, str(left), site.right)
        elif isinstance(right, str):
            if site.left or not site.right:
                yield from self._want(arguments, left, right, site.left)
                for piece in re.split(r"[,;]\s*", right)[:MAX_ALTERNATIVES]:
                    yield from self._want(arguments, left, piece, site.left)
            if site.right and isinstance(left, str):
                yield from self._contain(arguments, right, left, site.right)

    def _contain(self, arguments: Arguments, seen: Any, part: str, names: frozenset[str]) -> Iterator[Arguments]:
        """Try texts with a part: the part itself, texts of the pool that hold it, the present text plus the part."""
        holding = [v for v in self.pool if isinstance(v, str) and part.lower() in v.lower()]
        for wanted in [part, *sorted(holding, key=len)]:
            yield from self._want(arguments, seen, wanted, names)
        for name in sorted(names & set(self.parameters)):
            present = arguments.get(name)
            if isinstance(present, str) and self._is_allowed(part, {}):
                yield arguments | {name: f"{present} {self.restore_spelling(part)}"}

    def _toggle(self, arguments: Arguments, result: bool, names: frozenset[str]) -> Iterator[Arguments]:
        """Flip a flag, or make a choice that is absent."""
        for name in sorted(names & set(self.parameters)):
            schema = self.parameters[name]
            if "boolean" in types_of(schema):
                yield arguments | {name: not result}
            elif not result:
                for value in fit_values([*own_values(schema), *self.pool], schema, 6):
                    if self._is_allowed(value, schema):
                        yield arguments | {name: value}

    def _key(self, arguments: Arguments, seen: Any, key: Any, site: Site) -> Iterator[Arguments]:
        """Put a key in place. If the key is a tuple, put all of its items in place at once."""
        names = site.left
        if not (isinstance(key, list) and isinstance(seen, list) and len(key) == len(seen)):
            yield from self._want(arguments, seen, key, names)
            return
        changed = arguments
        parts = site.parts if len(site.parts) == len(key) else [names] * len(key)
        for part, wanted, reaching in zip(seen, key, parts, strict=True):
            if part != wanted:
                option = next(self._want(changed, part, wanted, reaching), None)
                if option is None:
                    return
                changed = option
        if changed != arguments:
            yield changed
        yield from self._want(arguments, seen, key, names)

    def _reorder(
        self, arguments: Arguments, left: Any, right: Any, kind: str, result: bool, site: Site
    ) -> Iterator[Arguments]:
        """Try values that reverse the outcome of an order comparison."""
        for seen, bound, names, flipped in ((left, right, site.left, False), (right, left, site.right, True)):
            if not names:
                continue
            fitting = []
            for value in [bound, *self.pool]:
                for form in convert(value, {"type": "number"}) if isinstance(bound, int | float) else [value]:
                    if type(form) is not type(bound) and not isinstance(bound, int | float):
                        continue
                    sides = (bound, form) if flipped else (form, bound)
                    if _ORDER[kind](*sides) != result:
                        fitting.append(form)
            for wanted in fitting[:6]:
                yield from self._want(arguments, seen, wanted, names)

    def _format(self, kind: str, pattern: str) -> Iterator[str]:
        if kind == "strptime":
            for day in self.knowledge.days():
                yield day.strftime(pattern)
            return
        for value in self.pool:
            try:
                if isinstance(value, str) and len(value) < 200 and getattr(re, kind)(pattern, value):
                    yield value
            except re.error:  # the tool's own pattern is not a valid one
                return

    # -- putting a value in place ------------------------------------------------------------------------------------

    def _want(self, arguments: Arguments, seen: Any, wanted: Any, names: frozenset[str]) -> Iterator[Arguments]:
        """Yield arguments in which `wanted` replaces `seen`, where `seen` came from."""
        if wanted is None or wanted == seen:
            return
        places = sorted(names & set(self.parameters)) or [
            str(path[0]) for path, value in leaves(arguments) if may_be_same(value, seen)
        ]
        for place in sorted(places, key=lambda name: not may_be_same(arguments.get(name), seen)):
            for path in self._paths(arguments, (place,), seen):
                yield from self._put(arguments, path, seen, wanted)

    def _paths(self, arguments: Arguments, place: Path, seen: Any) -> list[Path]:
        """Return the paths below a parameter that may have given `seen`: those of equal value, else all, also absent
        ones.
        """
        value = value_at(arguments, place)
        below = [((*place, *path), leaf) for path, leaf in leaves(value)] if isinstance(value, dict | list) else []
        equal = [path for path, leaf in below if may_be_same(leaf, seen)]
        if equal:
            return equal
        schema = schema_at(self.parameters, place)
        absent = [(*place, key) for key in schema.get("properties") or {}] if "object" in types_of(schema) else []
        return [place, *(path for path, _ in below), *(path for path in absent if value_at(arguments, path) is None)]

    def _put(self, arguments: Arguments, path: Path, seen: Any, wanted: Any) -> Iterator[Arguments]:
        schema = schema_at(self.parameters, path)
        present = value_at(arguments, path)
        if isinstance(present, str) and isinstance(wanted, str | int) and not isinstance(wanted, bool):
            part = str(seen)
            if 0 < len(part) < len(present) and part.lower() in present.lower():  # `seen` is a part of a longer text
                spliced = re.sub(re.escape(part), lambda _: str(wanted), present, count=1, flags=re.IGNORECASE)
                if self._is_allowed(spliced, schema):
                    yield replace_at(arguments, path, spliced)
        for form in self._forms(wanted, schema):
            if self._is_allowed(form, schema) and form != present:
                yield replace_at(arguments, path, form)
        if isinstance(present, list) and "array" in types_of(schema) and not isinstance(wanted, list):
            for form in self._forms(wanted, items_schema(schema)):
                if self._is_allowed(form, items_schema(schema)) and form not in present:
                    yield replace_at(arguments, path, [*present, form])

    def _forms(self, wanted: Any, schema: Mapping[str, Any]) -> list[Any]:
        options = [self.restore_spelling(wanted), wanted] if isinstance(wanted, str) else [wanted]
        if isinstance(wanted, list):
            options = [[self.restore_spelling(item) for item in wanted], wanted]
        elif not schema:  # the schema does not describe this part of the object
            return options
        fitted = [form for option in options for form in convert(option, schema)]
        return [form for i, form in enumerate(fitted) if form not in fitted[:i]]

    def restore_spelling(self, wanted: Any) -> Any:
        """Return a text as the question or a result writes it, with its capitals; unchanged if none holds it."""
        if not isinstance(wanted, str) or not wanted.strip():
            return wanted
        if wanted not in self._surfaces:
            pattern = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)", re.IGNORECASE)
            found = next(filter(None, (pattern.search(text) for _, text in self.knowledge.texts)), None)
            squeezed = next(
                (v for v in self.pool if isinstance(v, str) and not found and may_be_same(v, wanted)), wanted
            )
            self._surfaces[wanted] = found.group() if found else squeezed
        return self._surfaces[wanted]

    def _is_allowed(self, value: Any, schema: Mapping[str, Any]) -> bool:
        if not self.grounded:
            return True
        key = (repr(value), repr(schema))
        if key not in self._known:
            self._known[key] = self.knowledge.source(value, schema) is not None
        return self._known[key]


def may_be_same(value: Any, seen: Any) -> bool:
    """Check whether the code may have made one value from the other by case, white space, punctuation or type."""
    if isinstance(value, bool) or isinstance(seen, bool) or value is None or seen is None:
        return False
    if isinstance(value, list | dict) or isinstance(seen, list | dict):
        return bool(value == seen)
    first, second = (re.sub(r"[\W_]+", "", str(side).lower()) for side in (value, seen))
    return bool(first) and first == second
