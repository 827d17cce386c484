"""Find a call of one tool whose output states a known answer.

The search runs the tool, looks at what its code compared, changes an argument accordingly, and runs it again. The tool
runs instrumented in the sandbox, a batch at a time. Runs that came closer to the statement that holds the answer are
continued first. If nothing is compared (arithmetic, spelling), values of the texts are combined.
"""

from __future__ import annotations

import ast
import heapq
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from agentrl.core.bench import Environment
from agentrl.mining import probe
from agentrl.mining.examples import example_calls
from agentrl.mining.grounding import Knowledge, find_words, is_offered
from agentrl.mining.instrument import Site, instrument
from agentrl.mining.mutations import Arguments, Mutator
from agentrl.mining.values import (
    Path,
    examples_of,
    fit_values,
    is_date,
    items_schema,
    leaves,
    own_values,
    product_by_rank,
    remove_at,
    replace_at,
    schema_at,
    suggest_values,
    types_of,
)
from agentrl.rewards.verdicts import answer_verify
from agentrl.sandbox import Sandbox
from agentrl.schemas.plain import plain_tool

MAX_RUNS = 600  # runs of the instrumented tool in one search
BATCH = 16
MAX_CHANGES = 60  # changes made from one comparison
NO_DATE = ("1900-01-01", "2100-12-31")  # first and last day of a period that the texts do not state
MAX_VALUES = 24  # values tried for one parameter
REFUSAL = re.compile(
    r"\W*(?:(?:error|message|result)\W+)*(?:error|invalid|no \w+ found|not found|unknown)", re.IGNORECASE
)
_RUNTIME = File(probe.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Hop:
    """One step: what to find out, the answer, and the schema of the tool that gives it, in plain form."""

    need: str
    answer: str
    tool: Mapping[str, Any]  # {name, description, parameters}

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool", plain_tool(self.tool))


@dataclass(frozen=True)
class Found:
    """A verified call: its output states the answer. `sources` says where each argument comes from."""

    arguments: Arguments
    observation: str
    sources: dict[str, str | None]  # None: the value comes from nowhere

    @property
    def grounded(self) -> bool:
        return None not in self.sources.values()


def states_answer(observation: str, answer: str) -> bool:
    """Check whether a result states the answer. Stricter than the scorer: whole words, and not in an error message."""
    if REFUSAL.match(observation) or not answer_verify(observation, answer):
        return False
    stated = find_words([observation])
    return find_words([answer]) <= stated | {token.lstrip("0") for token in stated}


class Search:
    """The search for one hop. If `grounded`, values that the model could not know are dropped at once."""

    def __init__(self, hop: Hop, source: str, knowledge: Knowledge, sandbox: Sandbox, grounded: bool = True) -> None:
        self.hop, self.source, self.knowledge, self.episode = hop, source, knowledge, sandbox.episode()
        self.parameters: dict[str, Any] = hop.tool["parameters"].get("properties") or {}
        self.pool = suggest_values(knowledge, hop.need)
        self.mutator = Mutator(self.parameters, knowledge, self.pool, grounded)
        self.required: list[str] = []
        self.seen: set[str] = set()
        self.queue: list[tuple[float, int, Arguments]] = []
        self.runs = 0

    def find(self, environment: Environment) -> Found | None:
        """Return the first verified call that is grounded, else the first verified one, else None."""
        ungrounded = None
        for arguments in self._find_verified():
            if ungrounded is not None and None in self._sources(arguments).values():
                continue
            found = self.check(arguments, environment)
            if found is not None and found.grounded:
                simpler = self._simplify(arguments)
                return (self.check(simpler, environment) if simpler != arguments else None) or found
            ungrounded = ungrounded or found
        return ungrounded

    def _sources(self, arguments: Arguments) -> dict[str, str | None]:
        return {name: self.knowledge.source(value, self.parameters.get(name)) for name, value in arguments.items()}

    def check(self, arguments: Arguments, environment: Environment) -> Found | None:
        """Run the call without instruments; return it if its output states the answer, else None."""
        call = environment.call(self.hop.tool["name"], arguments, turn=0)
        if call.error or not states_answer(call.observation, self.hop.answer):
            return None
        return Found(arguments, call.observation, self._sources(arguments))

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _find_verified(self) -> Iterator[Arguments]:
        """Yield arguments whose instrumented run states the answer."""
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # the sources hold invalid escapes
                tree = ast.parse(self.source)
                code, self.sites = instrument(self.source, set(self.parameters), self._is_gold)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # such code does not run either
            return
        self.tool_code = code
        self.required = required_parameters(self.hop, tree)
        for arguments in example_calls(self.source, tree, self.hop.tool["name"]):
            self._push(10.0, arguments)
        self._push(5.0, self._start())
        for arguments in self._variations():
            self._push(-1.0, arguments)
        combined = self._combinations()
        while self.runs < MAX_RUNS:
            batch = [heapq.heappop(self.queue)[2] for _ in range(min(BATCH, len(self.queue)))]
            batch += itertools.islice(filter(self._new, combined), BATCH // 4 if batch else BATCH)
            if not batch:
                return
            for arguments, outcome in zip(batch, self._run(batch), strict=False):
                if any(states_answer(text, self.hop.answer) for text in outcome["output"]):
                    yield arguments
                    self._reground(arguments)
                self._continue(arguments, outcome["events"])

    def _is_gold(self, text: str) -> bool:
        return states_answer(text, self.hop.answer)

    def _run(self, batch: list[Arguments]) -> list[dict[str, Any]]:
        self.runs += len(batch)
        request = {"code": self.tool_code, "function": self.hop.tool["name"], "gold": self.hop.answer, "batch": batch}
        result = self.episode.call(_RUNTIME, "probe", request)
        if result.timed_out:  # it would time out again
            self.runs = MAX_RUNS
        if result.json is None or result.truncated:
            return []
        outcomes: list[dict[str, Any]] = result.value
        return outcomes

    def _new(self, arguments: Arguments) -> bool:
        """Check that the arguments were not tried before and are not too long."""
        key = json.dumps(arguments, sort_keys=True)
        if key in self.seen or len(key) > 5000:
            return False
        self.seen.add(key)
        return True

    def _push(self, score: float, arguments: Arguments) -> None:
        if self._new(arguments):
            heapq.heappush(self.queue, (-score, len(self.seen), arguments))

    def _continue(self, arguments: Arguments, events: list[list[Any]]) -> None:
        """Queue the changes that one run's comparisons suggest; a run that met more of the answer's conditions is
        first.
        """
        sites: list[Site] = self.sites
        met = {e[0] for e in events if (e[5] or sites[e[0]].guards_gold) and e[4] == (e[1] not in ("!=", "not in"))}
        scored = sorted(((self._weight(event), event) for event in events), key=lambda pair: -pair[0])
        for weight, event in scored:
            changes = self.mutator.changes(arguments, event, sites[event[0]])
            for rank, changed in enumerate(itertools.islice(changes, MAX_CHANGES)):
                self._push(len(met) + weight - 0.1 * rank, changed)

    def _weight(self, event: list[Any]) -> float:
        """Return how likely a change of what was compared leads to the answer."""
        if event[5] or self.sites[event[0]].guards_gold:
            return 3.0
        return -1.0 if event[1] == "truth" else 0.0

    # -- first arguments
    # -------------------------------------------------------------------------------------------------

    def _values(self, name: str) -> list[Any]:
        """Return values for one parameter: those of the schema if it lists them, else those of the texts first."""
        return self._fitting_values(name, self.parameters[name])

    def _fitting_values(self, name: str, schema: Mapping[str, Any]) -> list[Any]:
        if schema.get("properties") and types_of(schema)[0] == "object":
            needed = schema.get("required") or []
            whole = {key: self._likeliest(key, inner) for key, inner in schema["properties"].items()}
            return [whole, {key: value for key, value in whole.items() if key in needed}]
        offered = own_values(schema)
        closed = bool(offered) and "enum" in json.dumps(schema)
        first = (self._days(name) or [NO_DATE["end" in name]]) if is_date(name, schema) else []
        texts = fit_values([*first, *self.pool], schema, MAX_VALUES)
        found = fit_values([*offered, *(() if closed else (*texts, *examples_of(schema)))], schema, MAX_VALUES + 4)
        # Texts hold no objects.
        if not found and "array" in types_of(schema) and items_schema(schema).get("properties"):
            return [[value] for value in self._fitting_values(name, items_schema(schema))]
        return found

    def _days(self, name: str) -> list[str]:
        """Return days for a date: the first days for a beginning, the last days for an end."""
        days = [day.isoformat() for day in self.knowledge.days()]
        return sorted(days, reverse=True) if "end" in name else sorted(days) if "start" in name else days

    def _likeliest(self, name: str, schema: Mapping[str, Any]) -> Any:
        values = self._fitting_values(name, schema)
        placeholders = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
        return values[0] if values else placeholders.get(types_of(schema)[0], "?")

    def _start(self) -> Arguments:
        """Return the required parameters with their likeliest values; a placeholder if no text has a value."""
        return {name: self._likeliest(name, self.parameters[name]) for name in self.required}

    def _variations(self) -> Iterator[Arguments]:
        """Yield the first arguments with one value changed, or with one flag or choice of the schema added."""
        start = self._start()
        for name in self.parameters:
            choices = name not in self.required and (
                "boolean" in types_of(self.parameters[name]) or own_values(self.parameters[name])
            )
            if name in self.required or choices:
                for value in self._values(name):
                    yield start | {name: value}

    def _combinations(self) -> Iterator[Arguments]:
        """Yield combinations of values, likeliest first: of required parameters, then with one or two optional ones."""
        optional = [name for name in self.parameters if name not in self.required]
        limits = {0: 160, 1: 24, 2: 12}
        for extra in [(), *((name,) for name in optional), *itertools.combinations(optional, 2)]:
            names = [*self.required, *extra]
            values = [self._values(name) for name in names]
            for combination in itertools.islice(product_by_rank(values), limits[len(extra)]):
                yield dict(zip(names, combination, strict=True))

    # -- better arguments with the same result
    # ---------------------------------------------------------------------------

    def _reground(self, arguments: Arguments) -> None:
        """Queue other values in place of those that come from nowhere; the code may not need them."""
        for name, value in arguments.items():
            if self.knowledge.source(value, self.parameters.get(name)) is None:
                if name not in self.required:
                    self._push(20.0, {n: v for n, v in arguments.items() if n != name})
                for other in self._values(name):
                    self._push(19.0, arguments | {name: other})
                for path, leaf in leaves(value, (name,)):
                    schema = schema_at(self.parameters, path)
                    if self.knowledge.source(leaf, schema) is None:
                        for other in fit_values(self.pool, schema, MAX_VALUES):
                            self._push(18.0, replace_at(arguments, path, other))

    def _simplify(self, arguments: Arguments) -> Arguments:
        """Simplify arguments without changing the result.

        Optional arguments that change nothing are removed. Names are written as in the texts. Where the code does not
        read a value, the schema's example takes its place.
        """
        for path, _ in [((name,), None) for name in arguments] + list(leaves(arguments)):
            if not self._is_needed(path):
                arguments = self._prefer(remove_at(arguments, path), arguments)
        for path, leaf in list(leaves(arguments)):
            schema = schema_at(self.parameters, path)
            if not isinstance(leaf, str) or is_offered(leaf, schema):
                continue
            examples = examples_of(schema)[:1] if self._works(replace_at(arguments, path, "?")) else []
            for better in [*examples, self.mutator.restore_spelling(leaf)]:
                arguments = self._prefer(replace_at(arguments, path, better), arguments)
        return arguments

    def _is_needed(self, path: Path) -> bool:
        """Check whether the value at a path is required by the schema or the code, or is an item of a list."""
        if len(path) == 1:
            return path[0] in self.required
        return isinstance(path[-1], int) or path[-1] in (schema_at(self.parameters, path[:-1]).get("required") or [])

    def _works(self, arguments: Arguments) -> bool:
        outcome = self._run([arguments])
        return bool(outcome) and any(states_answer(text, self.hop.answer) for text in outcome[0]["output"])

    def _prefer(self, better: Arguments, arguments: Arguments) -> Arguments:
        return better if better != arguments and self._works(better) else arguments


def required_parameters(hop: Hop, tree: ast.Module) -> list[str]:
    """Return the parameters that the schema requires, or for which the code has no default."""
    parameters = hop.tool["parameters"].get("properties") or {}
    needed = set(hop.tool["parameters"].get("required") or [])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == hop.tool["name"]:
            positional = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
            needed.update(positional[: len(positional) - len(node.args.defaults)])
            keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            needed.update(argument.arg for argument, default in keywords if default is None)
    return [name for name in parameters if name in needed]
