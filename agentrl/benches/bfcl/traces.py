"""Makes expert traces of BFCL without a language model: executes and checks gold calls, takes reasoning from templates.


Multi-turn items have gold calls. Memory and web items have an answer and the place where it was found. Their traces
look it up in the evidence memory or in the recorded search, which are ours.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrl.benches.bfcl.data import MULTI_TURN, Entry
from agentrl.benches.bfcl.environment import STEP_LIMIT
from agentrl.benches.bfcl.memory import evidence_keys
from agentrl.benches.bfcl.simulator import Simulator
from agentrl.benches.bfcl.verdicts import judge
from agentrl.core.bench import Environment
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn

Call = tuple[str, dict[str, Any]]


def expert_trace(
    entry: Entry, environment: Environment, simulator: Simulator, same_memory: Sequence[Entry]
) -> ExpertTrace | None:
    """Return a trace that earns full marks by the official code, or None if there is none.

    `environment` is a fresh one of the item. `same_memory` are all questions of its scenario, including the item.
    """
    if entry.category in MULTI_TURN:
        turns, steps = _multi_turn(entry, environment)
        if judge(simulator, entry, steps)[0] < 1:
            return None
        return ExpertTrace(entry.id, turns, "Done.", source="mined")
    calls = enumerate(_look_up(entry, same_memory))
    turns = tuple(_step(entry, environment, [call], "" if index else entry.turns[0]) for index, call in calls)
    found = " ".join(observation for turn in turns for observation in turn.observations)
    answer = entry.answers[0]
    if judge(simulator, entry, [[{"text": found, "calls": []}]])[0] < 1:
        return None  # the look-up did not find the answer
    return ExpertTrace(entry.id, turns, answer, source="mined")


def reference_calls(entry: Entry, same_memory: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the gold calls of a multi-turn item, or the calls that look up the evidence of another item (ours)."""
    if entry.category in MULTI_TURN:
        calls = [gold_call(text, entry.docs) for gold in entry.gold for text in gold]
    else:
        calls = list(_look_up(entry, same_memory))
    return [{"name": name, "arguments": arguments} for name, arguments in calls]


def gold_call(text: str, docs: Mapping[str, Mapping[str, Any]]) -> Call:
    """Parse a gold call into name and arguments. Positional arguments get the names of the function doc, in order."""
    node = ast.parse(text, mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"not a plain call: {text}")
    names = docs[node.func.id]["parameters"]["properties"]
    arguments = {name: ast.literal_eval(value) for name, value in zip(names, node.args, strict=False)}
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return node.func.id, arguments


def _multi_turn(entry: Entry, environment: Environment) -> tuple[tuple[TraceTurn, ...], list[list[dict[str, Any]]]]:
    """Return the turns of the trace, one gold call each if the step limit allows it, and the steps for the scorer."""
    turns: list[TraceTurn] = []
    steps: list[list[dict[str, Any]]] = []
    for number, (asked, gold) in enumerate(zip(entry.turns, entry.gold, strict=True)):
        calls = [gold_call(text, entry.docs) for text in gold]
        size = -(-len(calls) // STEP_LIMIT) or 1  # one item has 34 gold calls in a turn, more than the limit
        grouped = [calls[start : start + size] for start in range(0, len(calls), size)]
        turns += [_step(entry, environment, group, "" if index else asked) for index, group in enumerate(grouped)]
        steps += [[{"text": "", "calls": list(turn.calls)} for turn in turns[len(turns) - len(grouped) :]]]
        if number + 1 < len(entry.turns):
            said = (
                "That is done." if calls else "I cannot do this yet: a function or a detail that it needs is missing."
            )
            chunk = Chunk("decision_summary" if calls else "other", said)
            turns.append(TraceTurn((chunk,), (), (), reply=entry.turns[number + 1]))
    return tuple(turns), steps


def _step(entry: Entry, environment: Environment, calls: Sequence[Call], asked: str) -> TraceTurn:
    """Execute the calls of one assistant turn and write their thought. `asked` is what the user just said, or empty."""
    chunks = [Chunk("task_restate", f"The user asks: {asked}\n")] if asked else []
    for name, arguments in calls:
        purpose = entry.docs[name]["description"].split("Tool description: ")[-1].split(". ")[0].strip().rstrip(".")
        chunks.append(Chunk("tool_selection", f"{name} helps here: {purpose}.\n"))
        if arguments:
            given = ", ".join(f"{key} is {value}" for key, value in arguments.items())
            chunks.append(Chunk("required_arg_grounding", f"Its arguments: {given}.\n"))
    observations = [environment.call(name, arguments, 0).observation for name, arguments in calls]
    made = tuple({"name": name, "arguments": arguments} for name, arguments in calls)
    return TraceTurn(tuple(chunks), made, tuple(observations))


def _look_up(entry: Entry, same_memory: Sequence[Entry]) -> Iterator[Call]:
    """Yield the calls that find the evidence of a memory or web item."""
    if entry.category == "memory_kv":
        yield "archival_memory_list_keys", {}
        yield "archival_memory_retrieve", {"key": evidence_keys(same_memory)[entry.source]}
    elif entry.category == "memory_rec_sum":
        yield "memory_retrieve", {}
    elif entry.category == "memory_vector":
        yield "archival_memory_retrieve", {"query": entry.turns[0]}
    else:
        for hop in entry.source:
            yield "search_engine_query", {"keywords": hop["subquestion"], "max_results": 1}
            if entry.category == "web_search_no_snippet":
                yield "fetch_url_content", {"url": hop["source"], "mode": "truncate"}
