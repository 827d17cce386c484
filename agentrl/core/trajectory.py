"""A trajectory is a list of tokens. What the policy sampled is kept as ids and is never tokenised again.

Every completion token knows its turn and its component. Losses, masks, advantages and viewers read these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Component(IntEnum):
    """What a token is part of. The policy can sample only REASONING, TOOL_CALL, ANSWER and DELIMITER."""

    PROMPT = 0
    REASONING = 1  # the text of a turn that ends in tool calls, including the think block
    TOOL_CALL = 2  # a complete call, including its opening and closing tags
    OBSERVATION = 3  # the environment's text and the template around it; this is context and never a target
    ANSWER = 4  # text of a turn without a tool call
    DELIMITER = 5  # the end-of-turn token, and white space between the parts


@dataclass(frozen=True)
class ToolCall:
    """One executed call of a rollout or of an expert trace."""

    turn: int  # 0-based assistant turn
    name: str
    arguments: Any  # a JSON object, or whatever else the model wrote in its place
    observation: str = ""
    error: bool = False  # the tool did not finish (unknown name, bad arguments, exception, timeout)


@dataclass
class Trajectory:
    """One episode of one task under the policy.

    `completion_ids`, `policy_mask`, `turn` and `component` have the same length T, and so has `logprobs` if the engine
    reports it. `policy_mask[n]` is 1 if the policy sampled token n, and 0 if the environment wrote it. `turn[n]` is the
    0-based assistant turn. An observation token has the turn whose calls it answers.
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
    reported_tokens: int | None = None  # number of sampled tokens, from an endpoint that returns no ids
    failure: str | None = None  # why an endpoint did not finish the episode; such an episode does not count

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
        """Number of calls whose result the policy never saw: calls of its last turn, or calls cut off by the budget."""
        made = sum(len(message.get("tool_calls") or []) for message in self.messages)
        return max(made - len(self.calls), 0)

    @property
    def num_turns(self) -> int:
        """Assistant turns taken (at least 1 for any non-empty completion)."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def final_text(self) -> str:
        """Content of the last message if the assistant wrote it, else the empty string."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return ""
        return self.messages[-1].get("content") or ""

    def calls_by_turn(self) -> list[list[ToolCall]]:
        """Group the executed calls by assistant turn. Returns a list of length `num_turns`."""
        grouped: list[list[ToolCall]] = [[] for _ in range(self.num_turns)]
        for call in self.calls:
            grouped[call.turn].append(call)
        return grouped
