"""What a task of minihop_hard asks for, step by step, and the tools that answer it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from agentrl.benches.minihop import Relation

FORMER = "former"  # the optional argument; "yes" asks for the former state


@dataclass(frozen=True)
class Joint:
    """A relation of two entities of different types to a third, and the tool that looks it up."""

    name: str
    sources: tuple[str, str]
    target: str

    @property
    def tool(self) -> str:
        return f"get_{self.name}"

    def describe(self) -> str:
        """What the tool does, for its schema."""
        return f"Find the {self.name} of a {self.sources[0]} and a {self.sources[1]}."


@dataclass(frozen=True)
class Step:
    """One right call of a task, and what it returns."""

    relation: Relation | Joint
    entities: tuple[str, ...]  # that it asks about, as the question or earlier steps name them
    result: str
    needs: tuple[int, ...]  # steps whose results it asks about
    former: bool  # the optional argument must be "yes"
    listed: str | None  # the name under which the tool knows the first entity, where it is another one

    @property
    def tool(self) -> str:
        return self.relation.tool

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.relation.source,) if isinstance(self.relation, Relation) else self.relation.sources

    def asked(self) -> tuple[str, ...]:
        """The entities under the names that the tool knows."""
        return self.entities if self.listed is None else (self.listed, *self.entities[1:])

    def call(self, entities: tuple[str, ...] | None = None) -> dict[str, Any]:
        """The call that succeeds, or the same call about other entities."""
        arguments = dict(zip(self.parameters, entities or self.asked(), strict=True))
        return {"name": self.tool, "arguments": arguments | ({FORMER: "yes"} if self.former else {})}


@dataclass(frozen=True)
class Shape:
    """What is asked, without the entities: one chain of relations, or two chains, their joint and the chain behind."""

    branches: tuple[tuple[Relation, ...], ...]
    joint: Joint | None
    tail: tuple[Relation, ...]

    def name(self) -> str:
        """The relations in words, e.g. director+studio/founder>agent/birthplace."""
        chains = "+".join("/".join(relation.name for relation in chain) for chain in self.branches)
        if self.joint is None:
            return chains
        return f"{chains}>{'/'.join([self.joint.name, *(relation.name for relation in self.tail)])}"

    def is_held_out(self) -> bool:
        """Whether the shape belongs to the test split. A third of them do, by a hash."""
        return hashlib.sha256(self.name().encode()).digest()[0] % 3 == 0

    def question(self, starts: list[str], steps: list[Step]) -> str:
        """The question in words. `steps` are in the order of the branches, the joint and the chain behind."""
        words = [f"'s {FORMER if step.former else ''} {step.relation.name}".replace("  ", " ") for step in steps]
        sides, at = [], 0
        for start, chain in zip(starts, self.branches, strict=True):
            sides.append(start + "".join(words[at : at + len(chain)]))
            at += len(chain)
        if self.joint is None:
            return f"What is {sides[0]}?"
        return f"Given {' and '.join(sides)}, what is their {self.joint.name}{''.join(words[at + 1 :])}?"


@dataclass(frozen=True)
class Table:
    """A tool and all that it knows."""

    tool: str
    description: str
    parameters: tuple[str, ...]
    listed: dict[str, str]  # entity -> the name under which it is listed
    present: dict[str, str]  # entities, joined by "/" -> result
    former: dict[str, str] | None  # the same for former=yes; None: the tool has no such argument

    def look_up(self, arguments: dict[str, str]) -> tuple[str, bool]:
        """The result of a call, or what its error says, and whether it is an error; as the tool's source computes."""
        entities = [arguments[name] for name in self.parameters]
        if entities[0] in self.listed:
            return f"no record of {entities[0]}, it is listed as {self.listed[entities[0]]}", True
        records = self.former if arguments.get(FORMER) == "yes" and self.former is not None else self.present
        key = "/".join(entities)
        return (records[key], False) if key in records else (f"no record of {key}", True)


def tool_schema(table: Table) -> dict[str, Any]:
    """The JSON schema of a tool."""
    properties: dict[str, Any] = {name: {"type": "string"} for name in table.parameters}
    if table.former is not None:
        properties[FORMER] = {"type": "string"}
    return {
        "type": "function",
        "function": {
            "name": table.tool,
            "description": table.description,
            "parameters": {"type": "object", "properties": properties, "required": list(table.parameters)},
        },
    }


def tool_source(table: Table) -> str:
    """The Python source of a tool, including its table."""
    first, option = table.parameters[0], "" if table.former is None else f', {FORMER}: str = "no"'
    key = ' + "/" + '.join(table.parameters)
    lines = [
        f"def {table.tool}({', '.join(f'{name}: str' for name in table.parameters)}{option}) -> str:",
        f"    listed = {json.dumps(table.listed)}",
        f"    records = {json.dumps(table.present)}",
        f"    if {first} in listed:",
        f'        raise ValueError("no record of " + {first} + ", it is listed as " + listed[{first}])',
        f"    key = {key}",
        "    if key not in records:",
        '        raise ValueError("no record of " + key)',
        "    return records[key]",
    ]
    if table.former is not None:
        lines[3:3] = [f'    if {FORMER} == "yes":', f"        records = {json.dumps(table.former)}"]
    return "\n".join(lines) + "\n"
