"""A trajectory is tokens: what the policy sampled is kept as ids and never tokenised again.

Every completion token knows its turn and its component; losses, masks, advantages and viewers all read these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Component(IntEnum):
    """What a token is part of. Only REASONING, TOOL_CALL, ANSWER and DELIMITER can be sampled by the policy."""

    PROMPT = 0
    REASONING = 1  # text of a turn that ends in tool calls, think block included
    TOOL_CALL = 2  # a complete call span, its opening and closing tags included
    OBSERVATION = 3  # the environment's text and the template around it: context, never a target
    ANSWER = 4  # text of a turn without a tool call
    DELIMITER = 5  # end-of-turn token and white space between spans


@dataclass(frozen=True)
class ToolCall:
    """One executed call of a rollout or of an expert trace."""

    turn: int  # 0-based assistant turn
    name: str
    arguments: Any  # a JSON object if the model behaved; whatever it wrote otherwise
    observation: str = ""
    error: bool = False  # the tool did not run to its end (unknown name, bad arguments, exception, timeout)


@dataclass
class Trajectory:
    """One episode of one task under the policy.

    `completion_ids`, `policy_mask`, `turn` and `component` have the same length T; `logprobs` too where the engine
    reports them. `policy_mask[n]` is 1 where the policy sampled token n and 0 where the environment wrote it.
    `turn[n]` is the 0-based assistant turn; an observation token carries the turn whose calls it answers.
    """

    task_id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    policy_mask: list[int]
    turn: list[int]
    component: list[Component]
    messages: list[dict[str, Any]]  # assistant and tool messages, in order, without the prompt
    calls: list[ToolCall] = field(default_factory=list)  # executed calls, in order
    truncated: bool = False  # the token budget cut the last turn
    logprobs: list[float] | None = None  # behaviour policy, per completion token (0 where policy_mask is 0)
    reported_tokens: int | None = None  # sampled tokens as an endpoint counts them, where it gives no ids
    failure: str | None = None  # why an endpoint did not play the episode to its end: nothing of it counts

    def __post_init__(self) -> None:
        length = len(self.completion_ids)
        for name in ("policy_mask", "turn", "component"):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {length} completion tokens")

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.policy_mask) if self.reported_tokens is None else self.reported_tokens

    @property
    def unexecuted(self) -> int:
        """Calls that the policy made and saw no result of: in its last turn, or cut off by the budget."""
        made = sum(len(message.get("tool_calls") or []) for message in self.messages)
        return max(made - len(self.calls), 0)

    @property
    def num_turns(self) -> int:
        """Assistant turns taken (at least 1 for any non-empty completion)."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def final_text(self) -> str:
        """Content of the last message if it is the assistant's, else the empty string."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return ""
        return self.messages[-1].get("content") or ""

    def calls_by_turn(self) -> list[list[ToolCall]]:
        """Executed calls grouped by assistant turn; length `num_turns`."""
        grouped: list[list[ToolCall]] = [[] for _ in range(self.num_turns)]
        for call in self.calls:
            grouped[call.turn].append(call)
        return grouped
