"""minihop: multi-hop tool use generated from a seed, in the format of ToolHop and FTRL.

A task names an entity and a chain of relations ("What is Kibra's director's birthplace?"). Each relation is a tool with
its own table. There are also distracting tools and distracting records. The chains of the test split never occur in the
training split, and its longest chains are longer than any in the training split.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from agentrl.benches.execution import WORKERS, ToolEnvironment, plain_text
from agentrl.benches.rows import answers_by_tool
from agentrl.config.benches import Minihop
from agentrl.core.bench import Bench, Environment, Score, Task
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rewards.answers import extract_answer
from agentrl.sandbox import Sandbox

MAX_HOPS = 4
RECORDS_PER_TOOL = 6
INSTRUCTION = "Answer by calling the tools, one step at a time. Put the final answer inside <answer></answer>."


@dataclass(frozen=True)
class Relation:
    """A relation between two types of entities, and the tool that looks it up."""

    name: str
    source: str
    target: str

    @property
    def tool(self) -> str:
        return f"get_{self.name}"

    def describe(self) -> str:
        """What the tool does, for its schema."""
        return f"Find the {self.name} of a {self.source}."


RELATIONS = tuple(
    Relation(*fields)
    for fields in (
        ("director", "film", "person"),
        ("actor", "film", "person"),
        ("studio", "film", "company"),
        ("spouse", "person", "person"),
        ("mentor", "person", "person"),
        ("birthplace", "person", "city"),
        ("employer", "person", "company"),
        ("founder", "company", "person"),
        ("rival", "company", "company"),
        ("headquarters", "company", "city"),
        ("mayor", "city", "person"),
        ("country", "city", "country"),
        ("capital", "country", "city"),
        ("president", "country", "person"),
    )
)
FIRST_SYLLABLES = "BaCeDiFoGuHaJeKiLoMuNaPeRiSoTuVaWeXiYoZu"  # two letters each
LAST_SYLLABLES = "brackodlefingarhonjatkellismornappelquarinstotavverwimxanzor"  # three letters each
NAMES = tuple(
    FIRST_SYLLABLES[i : i + 2] + LAST_SYLLABLES[j : j + 3]
    for i in range(0, len(FIRST_SYLLABLES), 2)
    for j in range(0, len(LAST_SYLLABLES), 3)
)


def chains(hops: int) -> Iterator[tuple[Relation, ...]]:
    """Yield every chain of `hops` relations whose types fit and that repeats no relation."""
    stack: list[tuple[Relation, ...]] = [(relation,) for relation in RELATIONS]
    while stack:
        chain = stack.pop()
        if len(chain) == hops:
            yield chain
            continue
        stack.extend((*chain, nxt) for nxt in RELATIONS if nxt.source == chain[-1].target and nxt not in chain)


def is_held_out(chain: tuple[Relation, ...]) -> bool:
    """Whether a chain belongs to the test split. A third of the multi-hop chains do, by a hash of their names."""
    digest = hashlib.sha256("/".join(relation.name for relation in chain).encode()).digest()
    return len(chain) > 1 and digest[0] % 3 == 0


def tool_schema(relation: Relation) -> dict[str, Any]:
    """Return the JSON schema of the tool of `relation`."""
    return {
        "type": "function",
        "function": {
            "name": relation.tool,
            "description": relation.describe(),
            "parameters": {
                "type": "object",
                "properties": {relation.source: {"type": "string"}},
                "required": [relation.source],
            },
        },
    }


def tool_source(relation: Relation, records: dict[str, str]) -> str:
    """Return the Python source of the tool of `relation`, including its table."""
    return (
        f"def {relation.tool}({relation.source}: str) -> str:\n"
        f"    records = {json.dumps(records)}\n"
        f"    if {relation.source} not in records:\n"
        f'        raise ValueError("no record of " + {relation.source})\n'
        f"    return records[{relation.source}]\n"
    )


def question(start: str, chain: tuple[Relation, ...]) -> str:
    """Return the question in words, with the hops as possessives in their order."""
    return f"What is {start}" + "".join(f"'s {relation.name}" for relation in chain) + "?"


def generate_task(task_id: str, chain: tuple[Relation, ...], rng: random.Random) -> Task:
    """Generate one task over `chain`. `rng` draws its entities, tables and distractors."""
    names = rng.sample(NAMES, len(chain) + 1 + 3 * RECORDS_PER_TOOL)
    entities, others = names[: len(chain) + 1], names[len(chain) + 1 :]
    spare = [relation for relation in RELATIONS if relation not in chain]
    # Prefer a distractor that accepts an entity of the chain, because it is tempting.
    tempting = [relation for relation in spare if any(relation.source == hop.source for hop in chain)]
    distractors = rng.sample(tempting, min(1, len(tempting)))
    distractors += rng.sample([relation for relation in spare if relation not in distractors], 1)
    relations = [*chain, *distractors]
    rng.shuffle(relations)

    tables: dict[str, dict[str, str]] = {}
    for relation in relations:
        keys, values = rng.sample(others, RECORDS_PER_TOOL), rng.sample(others, RECORDS_PER_TOOL)
        table = dict(zip(keys, values, strict=True))
        for hop, (source, target) in zip(chain, pairwise(entities), strict=True):
            if relation == hop:
                table[source] = target
            elif relation in distractors and relation.source == hop.source:
                table[source] = rng.choice(others)
        items = list(table.items())
        rng.shuffle(items)
        tables[relation.tool] = dict(items)
    return Task(
        id=task_id,
        prompt=[{"role": "user", "content": f"{INSTRUCTION}\nQuestion: {question(entities[0], chain)}"}],
        tools=[tool_schema(relation) for relation in relations],
        answer=entities[-1],
        cluster="/".join(relation.name for relation in chain),
        data={
            "chain": [relation.name for relation in chain],
            "entities": entities,
            "sources": {relation.tool: tool_source(relation, tables[relation.tool]) for relation in relations},
        },
        golds=answers_by_tool(zip((relation.tool for relation in chain), entities[1:], strict=True)),
    )


def with_rule(task: Task, share: float, rng: random.Random) -> Task:
    """Add a system prompt that forbids one tool: with probability `share` one that the answer needs (conflict)."""
    needed = [f"get_{name}" for name in task.data["chain"]]
    conflict = rng.random() < share
    tool = rng.choice([name for name in task.data["sources"] if (name in needed) == conflict])
    system = {"role": "system", "content": f"Never call {tool}."}
    data = {**task.data, "forbidden": tool, "kind": "conflict" if conflict else "aligned"}
    return replace(task, prompt=[system, *task.prompt], data=data)


def expert_turn(relation: Relation, entity: str, observation: str, with_preview: bool) -> TraceTurn:
    """Make one expert turn: four chunks of reasoning (five with a literal preview of the call), call, observation."""
    chunks = [
        Chunk("task_restate", f"I need the {relation.name} of {entity}."),
        Chunk("tool_selection", f" I use {relation.tool}."),
        Chunk("required_arg_grounding", f" The {relation.source} is {entity}."),
        Chunk("decision_summary", " So I call it."),
    ]
    if with_preview:
        chunks.append(Chunk("explicit_call_preview", f" {relation.tool}({entity})"))
    call = {"name": relation.tool, "arguments": {relation.source: entity}}
    return TraceTurn(tuple(chunks), (call,), (observation,))


def expert_trace(task: Task) -> ExpertTrace:
    """Write the shortest solution of a task. A quarter of the tasks, chosen by hash, previews its calls literally."""
    by_name = {relation.name: relation for relation in RELATIONS}
    entities = task.data["entities"]
    with_preview = hashlib.sha256(task.id.encode()).digest()[0] % 4 == 0
    turns = tuple(
        expert_turn(by_name[name], source, target, with_preview)
        for name, (source, target) in zip(task.data["chain"], pairwise(entities), strict=True)
    )
    return ExpertTrace(task.id, turns, task.answer, source="generated")


def without_previews(trace: ExpertTrace) -> ExpertTrace:
    """Cut the reasoning of every turn before a literal preview of its call."""
    turns = tuple(TraceTurn(turn.safe_chunks(), turn.calls, turn.observations) for turn in trace.turns)
    return ExpertTrace(trace.task_id, turns, trace.answer, trace.source)


class MinihopBench(Bench):
    """The bench; see the module docstring."""

    name = "minihop"
    solve_metric = "solve_rate"

    def __init__(self, config: Minihop, strict: bool = False) -> None:
        self.config = config
        self._sandbox = Sandbox(WORKERS, strict=strict)

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        shares = {"train": self.config.train_hops, "test": self.config.test_hops}[split]
        count = self.size(split)
        rng = random.Random(f"minihop/{self.config.data_seed}/{split}")
        pools = {
            hops: [chain for chain in chains(hops) if hops == 1 or is_held_out(chain) == (split == "test")]
            for hops in range(1, MAX_HOPS + 1)
        }
        tasks = []
        for index in range(count):
            hops = rng.choices(range(1, MAX_HOPS + 1), weights=shares)[0]
            task = generate_task(f"minihop-{split}-{index}", rng.choice(pools[hops]), rng)
            if self.config.forbid is not None:
                task = with_rule(task, self.config.forbid, random.Random(f"{self.config.data_seed}/{task.id}"))
            tasks.append(task)
        if limit is not None and limit < count:
            tasks = random.Random(seed).sample(tasks, limit)
        return tasks

    def size(self, split: str) -> int:
        return {"train": self.config.train_tasks, "test": self.config.test_tasks}[split]

    def environment(self, task: Task) -> Environment:
        return ToolEnvironment(task.data["sources"], plain_text, self._sandbox)

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return the shortest solution; None if it breaks the system prompt's rule, which a trace must not teach."""
        return None if task.data.get("kind") == "conflict" else expert_trace(task)

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        return expert_trace(task).calls

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return score_hops(task, trajectory)


def score_hops(task: Task, trajectory: Trajectory) -> Score:
    """Return Solve-P/R/F1 over the hops, as FTRL defines them, and whether the final answer is right.

    `solve_rate` is 1 if the answer is right and a tool returned the result of every hop, else 0. `kept_rule`, where a
    system prompt forbids a tool, is 1 if the tool was never called, else 0.
    """
    solved = count_solved(task, trajectory.calls)
    hops, calls = sum(map(len, task.golds.values())), len(trajectory.calls)
    correct = float(extract_answer(trajectory.final_text).strip().lower() == task.answer.lower())
    metrics = {
        "solve_rate": correct * float(solved == hops),
        "answer_correct": correct,
        "solve_p": solved / calls if calls else 1.0,
        "solve_r": solved / hops,
        "solve_f1": 2 * solved / (calls + hops),
    }
    groups = {"hops": str(hops)}
    if "forbidden" in task.data:
        metrics["kept_rule"] = float(all(call.name != task.data["forbidden"] for call in trajectory.calls))
        groups["kind"] = task.data["kind"]
    return Score(metrics, task.cluster, groups)


def count_solved(task: Task, calls: list[ToolCall]) -> int:
    """Count the solved hops. A call solves the hop of its tool if it returned the hop's answer, and only once."""
    open_hops = {(tool, answer) for tool, answers in task.golds.items() for answer in answers}
    solved = 0
    for call in calls:
        if (call.name, call.observation) in open_hops and not call.error:
            open_hops.remove((call.name, call.observation))
            solved += 1
    return solved
