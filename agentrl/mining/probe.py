"""Run an instrumented tool on many arguments inside the sandbox, and note what it compares.

`agentrl.mining.instrument` replaces every comparison, lookup and text test of a tool by a call of the hooks below. Each
hook returns the value of the original code and notes the operands: they show what the code wanted an argument to be.
The miner takes the notes only as hints. What counts is the clean call that follows.
"""

from __future__ import annotations

import datetime
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_EVENTS = 250  # events noted in a run; as many again for events that mention the gold answer
MAX_STEPS = 10_000  # hook calls in a run, so that an endless loop ends
MAX_TEXT = 400  # characters kept of a noted text
MAX_ITEMS = 60  # items kept of a noted container
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "is": operator.is_,
    "is not": operator.is_not,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}


class _EndlessError(BaseException):
    """The run took too many steps."""


class _Probe:
    def __init__(self, gold: str) -> None:
        self.parts = [part.lower().replace(",", "").strip() for part in gold.split(", ")]
        self.reset()

    def reset(self) -> None:
        self.events: list[list[Any]] = []
        self.seen: set[str] = set()
        self.counts, self.steps = [0, 0], 0

    def mentions(self, value: Any) -> bool:
        try:
            text = str(value).lower().replace(",", "")
        except Exception:  # a class of the tool may raise anything
            return False
        return len(text) < 5000 and all(part in text for part in self.parts)

    def note(self, site: int, kind: str, left: Any, right: Any, result: bool, hinted: bool) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise _EndlessError
        if self.counts[hinted] >= MAX_EVENTS:
            return
        event = [site, kind, plain(left), plain(right), result, hinted]
        key = repr(event)
        if key not in self.seen:
            self.seen.add(key)
            self.counts[hinted] += 1
            self.events.append(event)

    def compare(self, site: int, kind: str, left: Any, right: Any, context: Iterable[Any]) -> Any:
        result = OPERATORS[kind](left, right)
        hinted = any(self.mentions(item) for item in context)
        if kind in ("in", "not in") and isinstance(right, dict):
            self.note(site, "lookup", left, self.keys(right), left in right, hinted)
        else:
            self.note(site, kind, left, right, bool(result), hinted)
        return result

    def truth(self, site: int, value: Any) -> Any:
        self.note(site, "truth", value, None, bool(value), False)
        return value

    def keys(self, mapping: Mapping[Any, Any]) -> list[Any]:
        """Return the keys of a dictionary; keys of entries that mention the gold answer come first."""
        return sorted(mapping, key=lambda key: not self.mentions(mapping[key]))

    def item(self, site: int, holder: Any, key: Any) -> Any:
        self.lookup(site, holder, key)
        return holder[key]

    def lookup(self, site: int, holder: Any, key: Any) -> None:
        if isinstance(holder, dict) and holder:
            try:
                hit = key in holder
            except TypeError:  # an unhashable key: the tool's own lookup raises the same error
                return
            ordered = self.keys(holder)
            self.note(site, "lookup", key, ordered, hit, self.mentions(holder[ordered[0]]))

    def method(self, site: int, name: str, holder: Any, *args: Any, **kwargs: Any) -> Any:
        if name in ("get", "pop", "setdefault", "__getitem__") and args:
            self.lookup(site, holder, args[0])
        elif isinstance(holder, str) and args and isinstance(args[0], str):
            if name in ("find", "index", "count", "__contains__"):
                self.note(site, "in", args[0], holder, args[0] in holder, False)
            elif name in ("startswith", "endswith"):
                self.note(site, name, holder, args[0], getattr(holder, name)(args[0]), False)
        elif name == "strptime" and len(args) == 2:
            self.note(site, name, args[0], args[1], False, False)
        elif name in ("match", "fullmatch", "search") and len(args) >= 2 and isinstance(args[0], str):
            self.note(site, name, args[1], args[0], False, False)
        elif name in ("issubset", "issuperset", "intersection", "isdisjoint") and args:
            self.note(site, "==", list(holder), list(args[0]), False, False)
        return getattr(holder, name)(*args, **kwargs)


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it, cut to size; None if JSON cannot hold it."""
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()[:10]
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return [plain(item) for item in list(value)[:MAX_ITEMS]]
    return None


def shown(value: Any) -> list[str]:
    """Return the forms in which a bench may show a result."""
    try:
        return [str(value), json.dumps(value, ensure_ascii=False)]
    except Exception:  # not JSON, or a class of the tool, which may raise anything
        return [str(value)]


def probe(code: str, function: str, gold: str, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `function` on each element of `batch`; return {"output": texts, "events": what was compared} for each."""
    watch = _Probe(gold)
    hooks = {"__compare__": watch.compare, "__item__": watch.item, "__method__": watch.method, "__truth__": watch.truth}
    namespace: dict[str, Any] = dict(hooks)
    exec(compile(code, "<tool>", "exec"), namespace)
    outcomes = []
    for arguments in batch:
        watch.reset()
        try:
            output = shown(namespace[function](**json.loads(json.dumps(arguments))))
        except (Exception, SystemExit, _EndlessError):  # the error is an ordinary observation, and not the gold answer
            output = []
        outcomes.append({"output": [text[:20000] for text in output], "events": watch.events})
    return outcomes
