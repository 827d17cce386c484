"""Expert traces, written h*: an expert's solution of a task, which a policy can imitate or read.

Each turn has reasoning split into chunks, tool calls and observations. The final answer is not part of h*.
"""

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
            raise ValueError(f"chunk type {self.type!r} is not one of {', '.join(CHUNK_TYPES)}")


@dataclass(frozen=True)
class TraceTurn:
    """One turn of the expert: reasoning chunks, the calls made, and one observation per call."""

    chunks: tuple[Chunk, ...]
    calls: tuple[dict[str, Any], ...]  # {"name": str, "arguments": dict}
    observations: tuple[str, ...]
    reply: str | None = None  # what the user says next, where the conversation goes on after a turn without calls

    def safe_chunks(self) -> tuple[Chunk, ...]:
        """Return the chunks before the first literal preview of the call. Level L4 shows all of them."""
        for i, chunk in enumerate(self.chunks):
            if chunk.type == "explicit_call_preview":
                return self.chunks[:i]
        return self.chunks

    def prefix(self, level: int) -> tuple[Chunk, ...]:
        """Return the chunks shown at a level: L0 none, L1 the first, ..., L3 three, L4 every safe chunk (PACT, App. C).

        Raises ValueError if `level` is not in 0..MAX_LEVEL.
        """
        if not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"level {level} is not in 0..{MAX_LEVEL}")
        safe = self.safe_chunks()
        return safe if level == MAX_LEVEL else safe[:level]


@dataclass(frozen=True)
class ExpertTrace:
    """h* of one task. The final answer is kept apart so that it cannot leak into the context."""

    task_id: str
    turns: tuple[TraceTurn, ...]
    answer: str
    source: str  # "generated", "mined", "teacher" or "path"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All calls of the expert, in order. Rewards match the calls of a rollout with these."""
        return [call for turn in self.turns for call in turn.calls]

    def executed_calls(self) -> list[ToolCall]:
        """Return all calls with their turns and observations, as a rollout that makes them would have them."""
        return [
            ToolCall(index, call["name"], call["arguments"], observation)
            for index, turn in enumerate(self.turns)
            for call, observation in zip(turn.calls, turn.observations, strict=True)
        ]

    def without(self, parts: tuple[str, ...]) -> ExpertTrace:
        """Return the trace with some parts removed (PACT, Table 3): any of `reasoning`, `tool_call`, `tool_response`.

        Raises ValueError on another part.
        """
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
