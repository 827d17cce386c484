"""minihop_hard: multi-hop tool use that the base almost never solves, with traces that are good and not the only way.

A task asks for three to six calls (one or two make a base). One chain of relations leads to the answer, or two chains
whose ends a tool with two arguments joins ("Given Kibra's director and Sotav's studio, what is their agent's
birthplace?"). The two chains may be walked in any order. A relation may be asked for in its former state, which an
optional argument chooses. A tool may know an entity under another name: the call fails, the error says the name, and
the call must be mended. The shapes of the test split, and names of two words, never occur in the training split, and
its longest tasks are longer.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from agentrl.benches.execution import WORKERS, ToolEnvironment, plain_text
from agentrl.benches.minihop import INSTRUCTION, NAMES, RECORDS_PER_TOOL, RELATIONS, Relation, chains, score_hops
from agentrl.benches.minihop_steps import Joint, Shape, Step, Table, tool_schema, tool_source
from agentrl.benches.minihop_traces import write_trace
from agentrl.benches.rows import answers_by_tool
from agentrl.config.benches import MinihopHard
from agentrl.core.bench import Bench, Environment, Score, Task
from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.trajectory import Trajectory
from agentrl.sandbox import Sandbox

CALLS = range(1, 7)  # right calls of a task, mended ones counted once
TASK_NAMES = 40  # of a task: at most 15 belong to its steps, the others fill the tables
JOINTS = (
    Joint("agent", ("person", "company"), "person"),
    Joint("branch", ("company", "city"), "company"),
    Joint("residence", ("person", "city"), "city"),
    Joint("embassy", ("country", "city"), "city"),
)


@cache
def chains_of(hops: int) -> tuple[tuple[Relation, ...], ...]:
    """Every chain of `hops` relations."""
    return tuple(chains(hops))


def draw_shape(calls: int, joined: bool, rng: random.Random) -> Shape:
    """Draw what a task of so many calls asks for: one chain, or two chains, what joins them, and a chain behind."""
    if not joined:
        return Shape((rng.choice(chains_of(calls)),), None, ())
    least = 1 if calls > 2 else 0  # relations of a branch: none is left for two branches of a task of one or two calls
    while True:
        joint = rng.choice(JOINTS)
        first = rng.randint(least, calls - 1 - least)
        second = rng.randint(least, calls - 1 - first)
        tail = calls - 1 - first - second
        ends = [
            [chain for chain in chains_of(hops) if chain[-1].target == source] if hops else [()]
            for hops, source in zip((first, second), joint.sources, strict=True)
        ]
        behind = [chain for chain in chains_of(tail) if chain[0].source == joint.target] if tail else [()]
        branches, last = tuple(rng.choice(found) for found in ends), rng.choice(behind)
        used = [relation for chain in (*branches, last) for relation in chain]
        if len(set(used)) == len(used):  # no tool is needed twice
            return Shape(branches, joint, last)


def draw_shapes(count: int, split: str, shares: list[float], joins: float, rng: random.Random) -> list[Shape]:
    """Draw the shapes of a split. A third of all shapes, by a hash of their names, belong to the test split."""
    drawn: list[Shape] = []
    while len(drawn) < count:
        calls = rng.choices(CALLS, weights=shares)[0]
        shape = draw_shape(calls, rng.random() < joins, rng)
        if shape.is_held_out() == (split == "test"):
            drawn.append(shape)
    return drawn


def draw_names(count: int, split: str, length: int, rng: random.Random) -> list[str]:
    """Draw names of one or two words for the entities of a task, each word once.

    No name of two words is in both splits, but every word is. Names of one word are shared.
    """
    if length == 1:
        return rng.sample(NAMES, count)
    words = rng.sample(range(len(NAMES)), len(NAMES))
    names: list[str] = []
    while len(names) < count:
        first = words.pop()
        second = next(word for word in reversed(words) if ((first + word) % 3 == 0) == (split == "test"))
        words.remove(second)
        names.append(f"{NAMES[first]} {NAMES[second]}")
    return names


def generate_task(task_id: str, shape: Shape, pool: list[str], config: MinihopHard, rng: random.Random) -> Task:
    """Generate one task of a shape. `pool` has its names, and `rng` draws its tables and distractors."""
    steps: list[Step] = []
    ends: list[tuple[str, int | None]] = []  # of each branch: its last entity, and the step that found it
    starts = [pool.pop() for _ in shape.branches]

    def add(relation: Relation | Joint, entities: list[str], after: list[int | None]) -> tuple[str, int]:
        former = isinstance(relation, Relation) and rng.random() < config.former
        listed = pool.pop() if rng.random() < config.renamed else None
        needs = tuple(step for step in after if step is not None)
        steps.append(Step(relation, tuple(entities), pool.pop(), needs, former, listed))
        return steps[-1].result, len(steps) - 1

    for chain, start in zip(shape.branches, starts, strict=True):
        end: tuple[str, int | None] = (start, None)
        for relation in chain:
            end = add(relation, [end[0]], [end[1]])
        ends.append(end)
    if shape.joint is not None:
        end = add(shape.joint, [entity for entity, _ in ends], [step for _, step in ends])
        for relation in shape.tail:
            end = add(relation, [end[0]], [end[1]])
    tables = make_tables(steps, pool, config, rng)
    return Task(
        id=task_id,
        prompt=[{"role": "user", "content": f"{INSTRUCTION}\nQuestion: {shape.question(starts, steps)}"}],
        tools=[tool_schema(table) for table in tables],
        answer=steps[-1].result,
        cluster=shape.name(),
        data={"steps": steps, "tables": {table.tool: table for table in tables}},
        golds=answers_by_tool((step.tool, step.result) for step in steps),
    )


def make_tables(steps: list[Step], others: list[str], config: MinihopHard, rng: random.Random) -> list[Table]:
    """Draw the tables of all tools of a task: those of its steps, and distracting ones that know its entities, too.

    Distractors are as difficult as the steps of other tasks: without joins no tool has two arguments, and so on.
    """
    used: list[Relation | Joint] = [step.relation for step in steps]
    known: list[Relation | Joint] = [*RELATIONS, *(JOINTS if config.joins > 0 else ())]
    optional_share = 0.3 if config.former > 0 else 0.0  # of the tools of which no former state is asked
    entities = {entity for step in steps for entity in step.entities}
    spare = rng.sample([one for one in known if one not in used], config.distractors)
    relations = rng.sample([*used, *spare], len(steps) + config.distractors)
    by_relation = {step.relation: step for step in steps}
    tables = []
    for relation in relations:
        step = by_relation.get(relation)
        optional = isinstance(relation, Relation) and (
            (step is not None and step.former) or rng.random() < optional_share
        )
        sources = [relation.source] if isinstance(relation, Relation) else list(relation.sources)
        keys = ["/".join(rng.sample(others, len(sources))) for _ in range(RECORDS_PER_TOOL)]
        if step is None and len(sources) == 1:
            keys += rng.sample(sorted(entities), min(2, len(entities)))
        listed = {}
        if step is not None:
            keys.append("/".join(step.asked()))
            if step.listed is not None:
                listed[step.entities[0]] = step.listed
        rng.shuffle(keys)
        present = {key: rng.choice(others) for key in keys}
        former = {key: rng.choice(others) for key in keys} if optional else None
        if step is not None:
            (former if step.former and former is not None else present)["/".join(step.asked())] = step.result
        tables.append(Table(relation.tool, relation.describe(), tuple(sources), listed, present, former))
    return tables


class MinihopHardBench(Bench):
    """The bench; see the module docstring."""

    name = "minihop_hard"
    solve_metric = "solve_rate"

    def __init__(self, config: MinihopHard, strict: bool = False) -> None:
        self.config = config
        self._sandbox = Sandbox(WORKERS, strict=strict)

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        config, count = self.config, self.size(split)
        shares = {"train": config.train_calls, "test": config.test_calls}[split]
        rng = random.Random(f"minihop_hard/{config.data_seed}/{split}")
        shapes = draw_shapes(count, split, shares, config.joins, rng)
        tasks = [
            generate_task(
                f"minihop_hard-{split}-{index}",
                shape,
                draw_names(TASK_NAMES, split, config.name_words, rng),
                config,
                rng,
            )
            for index, shape in enumerate(shapes)
        ]
        return tasks if limit is None or limit >= count else random.Random(seed).sample(tasks, limit)

    def size(self, split: str) -> int:
        return {"train": self.config.train_tasks, "test": self.config.test_tasks}[split]

    def environment(self, task: Task) -> Environment:
        sources = {name: tool_source(table) for name, table in task.data["tables"].items()}
        return ToolEnvironment(sources, plain_text, self._sandbox)

    def expert_trace(self, task: Task) -> ExpertTrace:
        return write_trace(task, self.config.trace_quality)

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        """The calls that succeed: which order they are made in, and what failed before, is left open."""
        return [step.call() for step in task.data["steps"]]

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return score_hops(task, trajectory)
