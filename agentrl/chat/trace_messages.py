"""Writes an expert trace as chat messages and as text, and builds the context [x; h*] of prompt and trace."""

from __future__ import annotations

import json
from typing import Any

from agentrl.chat.format import ChatFormat
from agentrl.core.bench import Task
from agentrl.core.expert_trace import ExpertTrace, TraceTurn

TRACE_HEADING = "\nReference trace:\n"


def trace_text(trace: ExpertTrace) -> str:
    """Write h* as text for the user's message: reasoning, calls and observations of every turn, without the answer."""
    lines = []
    for turn in trace.turns:
        reasoning = "".join(chunk.text for chunk in turn.chunks)
        if reasoning:
            lines.append(reasoning)
        lines += [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in turn.calls]
        lines += [f"<tool_response>\n{observation}\n</tool_response>" for observation in turn.observations]
        if turn.reply is not None:
            lines.append(f"User: {turn.reply}")
    return "\n".join(lines)


def turn_messages(turn: TraceTurn, reasoning_format: str) -> list[dict[str, Any]]:
    """Return the chat messages of one expert turn: the assistant's, one per observation, and the user's reply if any.

    If the user replies, the assistant's words are plain text, because hidden reasoning would not reach the user.
    """
    reasoning = "".join(chunk.text for chunk in turn.chunks)
    assistant: dict[str, Any] = {"role": "assistant", "content": reasoning}
    if reasoning_format == "think" and turn.reply is None:
        assistant = {"role": "assistant", "reasoning_content": reasoning, "content": ""}
    if turn.calls:
        assistant["tool_calls"] = [{"type": "function", "function": call} for call in turn.calls]
    names = [call["name"] for call in turn.calls] or ["tool"]
    observations = [
        {"role": "tool", "name": names[min(i, len(names) - 1)], "content": observation}
        for i, observation in enumerate(turn.observations)
    ]
    replies = [] if turn.reply is None else [{"role": "user", "content": turn.reply}]
    return [assistant, *observations, *replies]


def context_messages(task: Task, trace: ExpertTrace, rendering: str, reasoning_format: str) -> list[dict[str, Any]]:
    """Return the context c^h = [x; h*] (PACT, eq. 7) as chat messages.

    'message' appends h* to the last user message. 'turns' writes h* as earlier turns, then repeats the user's message.
    """
    *earlier, last = task.prompt
    if rendering == "message":
        return [*earlier, {**last, "content": last["content"] + TRACE_HEADING + trace_text(trace)}]
    played = [message for turn in trace.turns for message in turn_messages(turn, reasoning_format)]
    return [*task.prompt, *played, last]


def context_ids(
    chat: ChatFormat, task: Task, trace: ExpertTrace, rendering: str, max_tokens: int
) -> tuple[list[int], int]:
    """Return the token ids of [x; h*], and the number of expert turns kept.

    The last turns are dropped until h* has at most `max_tokens` tokens.
    """
    plain = len(chat.prompt_ids(task.prompt, task.tools))
    for kept in range(len(trace.turns), 0, -1):
        shortened = ExpertTrace(trace.task_id, trace.turns[:kept], trace.answer, trace.source)
        ids = chat.prompt_ids(context_messages(task, shortened, rendering, chat.reasoning), task.tools)
        if len(ids) - plain <= max_tokens:
            return ids, kept
    return chat.prompt_ids(task.prompt, task.tools), 0
