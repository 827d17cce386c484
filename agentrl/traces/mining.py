"""Expert traces without a teacher: find, for every hop, a call whose real output is the hop's known answer.

Candidates come from what a reader of the task and the tool sees: example calls in the source, the schema's enums, the
literals that the code compares its parameters with, entities of the question, and earlier results. Each is executed in
the sandbox. A call counts if its output verifies, and if every value in it occurs in the question, in an earlier
result or in the tool's schema: an argument out of nowhere would teach guessing.
"""

from __future__ import annotations

import ast
import calendar
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.benches.base import Environment
from agentrl.rewards.verdicts import answer_verify
from agentrl.traces.records import Chunk, ExpertTrace, TraceTurn

MAX_CALLS = 80  # executed per hop
MAX_VALUES = 8  # tried per parameter
CARDINALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MONTHS = tuple(month.lower() for month in calendar.month_name)  # January is 1
_TOKEN = re.compile(r"\w+")
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]|(?<!\w)'([^']+)'(?!\w)")
_PROPER = re.compile(r"\b[A-Z][\w'’.-]*(?:\s+(?:(?:of|the|de|van|von|and|in|for|to|'s)\s+)*[A-Z0-9][\w'’.-]*)*")
_OPERANDS = re.compile(r"[\w.'’-]+(?=\s+(?:and|than|or)\s)|(?<=\band )[\w.'’-]+|(?<=\bthan )[\w.'’-]+")
_ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")


@dataclass(frozen=True)
class Hop:
    """One step: what to find out, the answer, and the schema of the tool that gives it."""

    need: str
    answer: str
    tool: Mapping[str, Any]  # {name, description, parameters}


@dataclass(frozen=True)
class Question:
    """What a trace is mined for. `sources` maps tool names to Python."""

    task_id: str
    text: str
    answer: str
    hops: list[Hop]
    sources: Mapping[str, str]


class Miner:
    """Mines traces and counts why others failed."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def mine(self, question: Question, environment: Environment) -> ExpertTrace | None:
        """The trace of `question`, or None: some hop has no verified and grounded call, or they miss the answer."""
        turns: list[TraceTurn] = []
        known = [question.text]
        for hop in question.hops:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # odd escapes in the sources
                found = self._solve(hop, question, known, environment)
            if found is None:
                return None
            arguments, observation = found
            call = {"name": hop.tool["name"], "arguments": arguments}
            turns.append(TraceTurn(reasoning(hop, arguments, known), (call,), (observation,)))
            known.append(observation)
        if not turns or not answer_verify(known[-1], question.answer):
            self.outcomes["the last result is not the answer"] += 1
            return None
        self.outcomes["mined"] += 1
        return ExpertTrace(question.task_id, tuple(turns), question.answer, source="mined")

    def _solve(
        self, hop: Hop, question: Question, known: list[str], environment: Environment
    ) -> tuple[dict[str, Any], str] | None:
        """Arguments and output of the first candidate that verifies and is grounded."""
        seen: set[str] = set()
        verified_ungrounded = False
        visible = words([*known, json.dumps(hop.tool, ensure_ascii=False)])
        for arguments in candidates(hop, question.sources[hop.tool["name"]], known):
            text = json.dumps(arguments, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            if len(seen) > MAX_CALLS:
                break
            call = environment.call(hop.tool["name"], arguments, turn=0)
            if call.error or not gives(call.observation, hop.answer):
                continue
            if all(grounded(value, visible) for value in arguments.values()):
                return arguments, call.observation
            verified_ungrounded = True
        self.outcomes["an argument is ungrounded" if verified_ungrounded else "no call verifies"] += 1
        return None


def gives(observation: str, answer: str) -> bool:
    """Does a result state the answer? Stricter than the scorer: whole words, and no message about an error."""
    if re.match(r"\W*error\b", observation, re.IGNORECASE) or not answer_verify(observation, answer):
        return False
    stated = words([observation])
    return words([answer]) <= stated | {token.lstrip("0") for token in stated}


def words(texts: Iterable[str]) -> set[str]:
    """Lower-cased words and numbers, thousands' commas left out."""
    return {token for text in texts for token in _TOKEN.findall(text.lower().replace(",", "").replace("_", " "))}


def grounded(value: Any, visible: set[str]) -> bool:
    """Does every word and number of a value occur in what the model has seen? Flags and null need no source."""
    if isinstance(value, dict):
        return all(grounded(item, visible) for item in value.values())
    if isinstance(value, list):
        return all(grounded(item, visible) for item in value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        spelt = {CARDINALS[int(value)], ORDINALS[int(value)]} if value in range(len(CARDINALS)) else set()
        return bool(visible & spelt) or words([f"{abs(value):.12g}"]) <= visible
    date = _ISO_DATE.fullmatch(str(value))
    if date and 1 <= int(date[2]) <= 12 and {date[1], MONTHS[int(date[2])], str(int(date[3]))} <= visible:
        return True
    return words([str(value)]) <= visible


# -- candidates ------------------------------------------------------------------------------------------------------


def candidates(hop: Hop, source: str, known: list[str]) -> Iterator[dict[str, Any]]:
    """Argument objects to try, likeliest first: example calls, then combinations of values for the parameters."""
    parameters: dict[str, dict[str, Any]] = hop.tool["parameters"].get("properties") or {}
    required = [name for name in hop.tool["parameters"].get("required") or [] if name in parameters]
    try:
        tree: ast.Module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it will not run either
        return
    yield from example_calls(source, tree, hop.tool["name"])
    literals = compared_literals(tree, set(parameters))
    constants = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    results = [value for text in known[:0:-1] for value in (*_leaves(text), text)]
    entities: list[Any] = [*entity_values(hop.need), *results, *entity_values(known[0])]
    operands: list[Any] = _OPERANDS.findall(hop.need)
    visible = words(known)
    stored = [text for text in constants if len(text) < 80 and words([text]) and words([text]) <= visible]
    values: dict[str, list[Any]] = {}
    for name, schema in parameters.items():
        options = [*_schema_values(schema), *literals.get(name, [])]
        closed = options and "enum" in json.dumps(schema)
        values[name] = _fit(options if closed else [operands, *options, *stored, *entities], schema)
    optional = [name for name in parameters if name not in required]
    for extra in [(), *((name,) for name in optional), *itertools.combinations(optional, 2)]:
        names = [*required, *extra]
        for combination in itertools.islice(itertools.product(*(values[name] for name in names)), MAX_CALLS // 2):
            yield dict(zip(names, combination, strict=True))


def example_calls(source: str, tree: ast.Module, function: str) -> Iterator[dict[str, Any]]:
    """Calls of the function written out in the source or in its comments, with literal arguments."""
    definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    parameters = [argument.arg for argument in definitions[-1].args.args] if definitions else []
    text = re.sub(r"^[ \t]*#[ \t]?", "", source, flags=re.MULTILINE)
    for match in re.finditer(rf"(?<!def )\b{re.escape(function)}\(", text):
        call = _first_call(text[match.start() :])
        if call is None:
            continue
        try:
            arguments = {n: ast.literal_eval(v) for n, v in zip(parameters, call.args, strict=False)}
            arguments |= {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            yield json.loads(json.dumps(arguments))
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue  # variables or objects among its arguments


def _first_call(text: str) -> ast.Call | None:
    """The call expression that `text` begins with, if it is Python and no prose: the shortest that parses."""
    for closing in itertools.islice(re.finditer(r"\)", text), 30):
        try:
            expression = ast.parse(text[: closing.end()], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return expression if isinstance(expression, ast.Call) else None
    return None


def compared_literals(tree: ast.AST, parameters: set[str]) -> dict[str, list[Any]]:
    """Constants that the code compares each parameter with (==, in), wherever its name occurs in the comparison."""
    found: dict[str, list[Any]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & parameters
        constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str | int)]
        for name in names:
            found.setdefault(name, []).extend(constants)
    return found


def entity_values(text: str) -> list[str]:
    """Quoted spans, runs of capitalised words (without the question word), and numbers, longest first."""
    quoted = [first or second for first, second in _QUOTED.findall(text)]
    asked = r"^(?:What|Which|Who|Whose|When|Where|How|The|A|An|In)\b\s*"
    proper = [re.sub(r"['’]s$", "", re.sub(asked, "", span)).rstrip(".") for span in _PROPER.findall(text)]
    return sorted({*quoted, *proper} - {""}, key=lambda span: (-len(span), span)) + _NUMBER.findall(text)


def _leaves(text: str) -> list[Any]:
    """Strings and numbers inside a result that is JSON."""
    try:
        stack, leaves = [json.loads(text)], []
    except (ValueError, RecursionError):
        return []
    while stack:
        value = stack.pop()
        if isinstance(value, dict | list):
            stack.extend(reversed(value.values() if isinstance(value, dict) else value))
        elif not isinstance(value, bool | None):
            leaves.append(value)
    return leaves


def _schema_values(schema: Mapping[str, Any]) -> list[Any]:
    return [
        *schema.get("enum", []),
        *([schema["default"]] if "default" in schema else []),
        *_items(schema).get("enum", []),
    ]


def _items(schema: Mapping[str, Any]) -> dict[str, Any]:
    items = schema.get("items")
    return items if isinstance(items, dict) else {}


def _fit(pool: Iterable[Any], schema: Mapping[str, Any]) -> list[Any]:
    """The values of the pool that the schema's type allows, converted to it, without repetition."""
    kind = schema.get("type", "string")
    kinds = kind if isinstance(kind, list) else [kind]
    fitted: list[Any] = [False, True] if "boolean" in kinds else []
    for value in pool:
        for form in kinds:
            fitted += _convert(value, form, schema)
    unique = {json.dumps(value): value for value in fitted}
    return list(unique.values())[:MAX_VALUES]


def _convert(value: Any, kind: str, schema: Mapping[str, Any]) -> list[Any]:
    if kind == "array":
        items = _items(schema)
        inner = str(items.get("type", "string"))
        if not isinstance(value, list):
            return [[item] for item in _convert(value, inner, items)]
        converted = [_convert(item, inner, items)[:1] for item in value]
        return [[item for form in converted for item in form]] if value and all(converted) else []
    text = str(value).strip().strip('"')
    if isinstance(value, list) or kind not in ("string", "integer", "number"):
        return []
    if kind == "string":
        return [text]
    if not re.fullmatch(r"-?\d+(\.\d+)?", text):
        return []
    return [int(text)] if "." not in text else [float(text)] if kind == "number" else []


# -- reasoning -------------------------------------------------------------------------------------------------------


def reasoning(hop: Hop, arguments: Mapping[str, Any], known: list[str]) -> tuple[Chunk, ...]:
    """A turn's thought from templates: the need, the tool, where each argument comes from, the decision."""
    purpose = str(hop.tool.get("description", "")).split(". ")[0].strip().rstrip(".")
    chunks = [
        Chunk("task_restate", f"I need to find out: {hop.need}\n"),
        Chunk("tool_selection", f"{hop.tool['name']} can tell me. {purpose}.\n"),
    ]
    if arguments:
        origins = "; ".join(f"{name} {_origin(value, known)}" for name, value in arguments.items())
        chunks.append(Chunk("required_arg_grounding", f"Its arguments: {origins}.\n"))
    chunks.append(Chunk("decision_summary", "I have all it needs, so I call it now.\n"))
    return tuple(chunks)


def _origin(value: Any, known: list[str]) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for step in range(len(known) - 1, -1, -1):
        if not isinstance(value, bool | None) and grounded(value, words([known[step]])):
            return f"is {shown}, from the result of step {step}" if step else f"is {shown}, from the question"
    return f"is set to {shown}, as its description allows"
