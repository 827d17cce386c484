"""Expert traces of minihop_hard in three qualities. Each takes one of several right orders, chosen by the task's name.

clean    the right calls, and those that had to fail before the name was known
verbose  the same calls with more and other words around each
noisy    clean, but a fifth of the steps are wrong: another tool, another entity or another state; the next step mends
"""

from __future__ import annotations

import random
from typing import Any

from agentrl.benches.execution import ERROR_PREFIX
from agentrl.benches.minihop_steps import FORMER, Step, Table
from agentrl.config.benches import TraceQuality
from agentrl.core.bench import Task
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn

WRONG_STEPS = 0.2  # share of wrong steps in a noisy trace


def write_trace(task: Task, quality: TraceQuality) -> ExpertTrace:
    """Write a trace of a task: every observation is what the tool returns."""
    rng = random.Random(f"{task.id}/{quality}")
    turns: list[TraceTurn] = []
    for step in right_order(task.data["steps"], rng):
        if quality == "noisy" and rng.random() < WRONG_STEPS / (1 - WRONG_STEPS):
            turns.append(wrong_turn(step, task.data["tables"], rng))
        if step.listed is not None:
            turns.append(make_turn(task, step.call(step.entities), words(step, step.entities[0], quality)))
            turns.append(make_turn(task, step.call(), mending_words(step, quality)))
        else:
            turns.append(make_turn(task, step.call(), words(step, step.entities[0], quality)))
    return ExpertTrace(task.id, tuple(turns), task.answer, source="generated")


def right_order(steps: list[Step], rng: random.Random) -> list[Step]:
    """One of the orders in which every step comes after those that it needs."""
    order: list[int] = []
    while len(order) < len(steps):
        ready = [i for i, step in enumerate(steps) if i not in order and set(step.needs) <= set(order)]
        order.append(rng.choice(ready))
    return [steps[index] for index in order]


def make_turn(task: Task, call: dict[str, Any], chunks: list[Chunk]) -> TraceTurn:
    """A turn of one call, with what the tool returns."""
    return TraceTurn(tuple(chunks), (call,), (observe(task.data["tables"], call),))


def observe(tables: dict[str, Table], call: dict[str, Any]) -> str:
    """What the environment answers to a call of an existing tool."""
    text, failed = tables[call["name"]].look_up(call["arguments"])
    return f"{ERROR_PREFIX} {call['name']}: {text}" if failed else text


def words(step: Step, entity: str, quality: TraceQuality) -> list[Chunk]:
    """The reasoning before a call."""
    entities = " and ".join((entity, *step.entities[1:]))
    asked = f"{FORMER} {step.relation.name}" if step.former else step.relation.name
    arguments = ", ".join(
        f"the {name} is {value}" for name, value in zip(step.parameters, (entity, *step.entities[1:]), strict=True)
    )
    if quality != "verbose":
        return [
            Chunk("task_restate", f"I need the {asked} of {entities}."),
            Chunk("tool_selection", f" I use {step.tool}."),
            Chunk("required_arg_grounding", f" {arguments[0].upper()}{arguments[1:]}."),
            Chunk("decision_summary", " So I call it."),
        ]
    option = f" It is {FORMER}, so {FORMER} is yes." if step.former else " Nothing else is asked."
    return [
        Chunk("task_restate", f"One step of the question is the {asked} of {entities}."),
        Chunk("tool_scan", f" The tool for the {step.relation.name} is {step.tool}."),
        Chunk("tool_selection", f" I call {step.tool} and no other tool."),
        Chunk("required_arg_grounding", f" I know that {arguments}."),
        Chunk("optional_arg_analysis", option),
        Chunk("decision_summary", f" So I find the {asked} of {entities} by {step.tool}."),
    ]


def mending_words(step: Step, quality: TraceQuality) -> list[Chunk]:
    """The reasoning after an error that says another name."""
    name = f"{step.entities[0]} is listed as {step.listed}."
    if quality != "verbose":
        return [
            Chunk("failure_reflection", name),
            Chunk("fallback_plan", f" I use {step.tool} of {step.listed}."),
            Chunk("decision_summary", " So I call it."),
        ]
    return [
        Chunk("failure_reflection", f"The call is an error, but the tool says that {name}"),
        Chunk("fallback_plan", f" I call {step.tool} again and use {step.listed}."),
        Chunk("decision_summary", f" So I find the {step.relation.name} of {step.listed}."),
    ]


def wrong_turn(step: Step, tables: dict[str, Table], rng: random.Random) -> TraceTurn:
    """A mistake before a right step. Nothing that the step is for comes out of it."""
    table, kinds = tables[step.tool], ["entity"]
    alike = [one for one in tables.values() if one.parameters == table.parameters and one.tool != step.tool]
    kinds += ["tool"] if alike else []
    kinds += ["state"] if table.former is not None else []
    kind = rng.choice(kinds)
    call = step.call(step.entities)
    if kind == "tool":
        call = {"name": rng.choice(alike).tool, "arguments": dict(zip(step.parameters, step.entities, strict=True))}
    elif kind == "state":
        call = {**call, "arguments": {**call["arguments"], FORMER: "no" if step.former else "yes"}}
    else:
        other = rng.choice([key.split("/")[0] for key in table.present if key != "/".join(step.asked())])
        call = step.call((other, *step.entities[1:]))
    chunks = [Chunk("tool_selection", f"I use {call['name']}."), Chunk("decision_summary", " So I call it.")]
    return TraceTurn(tuple(chunks), (call,), (observe(tables, call),))
