"""Expert traces h*: per turn a segmented reasoning, tool calls, observations. The final answer is not part of h*."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from agentrl.core.trajectory import ToolCall

CHUNK_TYPES = (
    "task_restate",
    "tool_scan",
    "tool_selection",
    "required_arg_grounding",
    "optional_arg_analysis",
    "irrelevant_tool_rejection",
    "failure_reflection",
    "fallback_plan",
    "decision_summary",
    "explicit_call_preview",
    "final_answer_grounding",
    "other",
)  # PACT, App. C
MAX_LEVEL = 4
TracePart = Literal["reasoning", "tool_call", "tool_response"]
TRACE_PARTS: tuple[str, ...] = get_args(TracePart)


@dataclass(frozen=True)
class Chunk:
    """One semantic piece of a turn's reasoning (PACT, App. C)."""

    type: str
    text: str

    def __post_init__(self) -> None:
        if self.type not in CHUNK_TYPES:
            raise ValueError(f"chunk type {self.type!r} is none of {', '.join(CHUNK_TYPES)}")


@dataclass(frozen=True)
class TraceTurn:
    """One expert turn: reasoning chunks, the calls made, and one observation per call."""

    chunks: tuple[Chunk, ...]
    calls: tuple[dict[str, Any], ...]  # {"name": str, "arguments": dict}
    observations: tuple[str, ...]
    reply: str | None = None  # what the user says next, where the conversation goes on after a turn without calls

    def safe_chunks(self) -> tuple[Chunk, ...]:
        """The longest prefix of chunks without a literal preview of the call: what level L4 shows."""
        for i, chunk in enumerate(self.chunks):
            if chunk.type == "explicit_call_preview":
                return self.chunks[:i]
        return self.chunks

    def prefix(self, level: int) -> tuple[Chunk, ...]:
        """Chunks shown at a cumulative level: L0 none, L1 the first, ..., L3 three, L4 every safe one (App. C)."""
        if not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"level {level} is not in 0..{MAX_LEVEL}")
        safe = self.safe_chunks()
        return safe if level == MAX_LEVEL else safe[:level]


@dataclass(frozen=True)
class ExpertTrace:
    """h* of one task, with the final answer kept apart so that it cannot leak."""

    task_id: str
    turns: tuple[TraceTurn, ...]
    answer: str
    source: str  # "generated", "mined", "teacher" or "path"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All reference calls in order: the gold side of hard-credit matching."""
        return [call for turn in self.turns for call in turn.calls]

    def executed_calls(self) -> list[ToolCall]:
        """All calls with their turns and observations: what a rollout that makes them has to be scored by."""
        return [
            ToolCall(index, call["name"], call["arguments"], observation)
            for index, turn in enumerate(self.turns)
            for call, observation in zip(turn.calls, turn.observations, strict=True)
        ]

    def without(self, parts: tuple[str, ...]) -> ExpertTrace:
        """The trace with some parts removed (PACT, Table 3): any of `reasoning`, `tool_call`, `tool_response`."""
        unknown = set(parts) - set(TRACE_PARTS)
        if unknown:
            raise ValueError(f"unknown trace parts {sorted(unknown)}; choose from {', '.join(TRACE_PARTS)}")
        turns = tuple(
            TraceTurn(
                chunks=() if "reasoning" in parts else turn.chunks,
                calls=() if "tool_call" in parts else turn.calls,
                observations=() if "tool_response" in parts else turn.observations,
                reply=turn.reply,
            )
            for turn in self.turns
        )
        return replace(self, turns=turns)
