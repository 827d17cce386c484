"""Gets the official verdict on an episode, in whatever form it was recorded.


These rules of the official code are kept. A step that cannot be decoded is skipped. An episode with fewer turns than
the item fails, but one that exceeded its step limit in the last turn is still scored. Turns without gold calls are
executed and not checked. Extra calls and failed calls cost nothing if the states and the gold results agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.benches.bfcl.calls import REFUSED, decode_calls, decode_text, safe_string, without_thought
from agentrl.benches.bfcl.data import Entry
from agentrl.benches.bfcl.environment import TOO_LONG, SimulatedApis
from agentrl.benches.bfcl.simulator import Simulator, TookTooLong

FORCE_TERMINATED = "multi_turn:force_terminated"
NOT_ONE_TURN = "agentic:inference_error"
NO_LAST_MESSAGE = "agentic:no_last_message"
Step = Mapping[str, Any]  # {"text": str, "calls": [{"name", "arguments"}]}
Verdict = tuple[float, str | None]  # 1 or 0, and the official error type


def judge(simulator: Simulator, entry: Entry, turns: Sequence[Sequence[Step]]) -> Verdict:
    """Return the verdict on the steps of every user turn."""
    if entry.answers:
        if len(turns) > 1:
            return 0.0, NOT_ONE_TURN
        texts = [without_thought(step["text"]) for turn in turns for step in turn if not decode_calls(step["calls"])]
        return judge_answer(simulator, entry, texts[-1]) if texts and texts[-1] else (0.0, NO_LAST_MESSAGE)
    if len(turns) != len(entry.gold):
        return 0.0, FORCE_TERMINATED
    known = entry.docs.keys()
    calls = [
        [
            [safe_string(*call, known) for call in step]
            for step in map(decode_calls, (step["calls"] for step in turn))
            if step
        ]
        for turn in turns
    ]
    return check(simulator, entry, calls)


def check(simulator: Simulator, entry: Entry, calls: list[list[list[str]]]) -> Verdict:
    """Return the verdict on call strings, by turn and step. A call that never returns counts as failed."""
    request: dict[str, Any] = {"entry": entry.payload, "gold": [list(turn) for turn in entry.gold]}
    try:
        verdict = simulator.ask("check", turns=calls, **request)
    except TookTooLong:  # a call hangs: try each call to find it, and let it fail in the check
        apis = SimulatedApis(simulator, entry.payload)
        tried = [[[REFUSED if apis.execute(c) == TOO_LONG else c for c in step] for step in turn] for turn in calls]
        # Each call returned in time, but all together may need longer.
        patience = simulator.timeout * (1 + sum(len(step) for turn in tried for step in turn))
        verdict = simulator.ask("check", timeout=patience, turns=tried, **request)
    return float(verdict["valid"]), verdict["error_type"]


def judge_answer(simulator: Simulator, entry: Entry, response: Any) -> Verdict:
    """Return the verdict on the last message without a call. Of a list the first element counts, as officially."""
    if response == []:  # the official code crashes on it
        return 0.0, NO_LAST_MESSAGE
    verdict = simulator.ask("check_answer", response=response, answers=list(entry.answers))
    return float(verdict["valid"]), verdict["error_type"]


def turns_of(messages: Sequence[Mapping[str, Any]], raw: bool = False) -> list[list[Step]]:
    """Return the steps of each user turn of a conversation. With `raw`, assistant texts still contain their calls.

    The messages before the first assistant message are the prompt. A user message without a reply is not a turn.
    """
    turns: list[list[Step]] = [[]]
    for message in messages:
        if message["role"] == "user" and any(turns):
            turns.append([])
        elif message["role"] == "assistant":
            text = message.get("content") or ""
            calls = [call.get("function", call) for call in message.get("tool_calls") or []]
            turns[-1].append({"text": text, "calls": calls or (decode_text(text) if raw else [])})
    return turns if turns[-1] else turns[:-1]


def turns_of_record(record: Mapping[str, Any]) -> list[list[Step]]:
    """Return the steps of each user turn of a record with `turns` or `messages`. Raises ValueError on another form."""
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, list) for turn in turns):
            raise ValueError("turns: expected a list of turns, each a list of steps")
        return [[_step(step) for step in turn] for turn in turns]
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise ValueError("expected `turns`, `messages` (a list of chat messages) or, for answers, `response`")
    for number, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        if not isinstance(message.get("content"), str | None):
            raise ValueError(f"messages: the content of message {number} is not a string")
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise ValueError(f"messages: the tool_calls of message {number} are not a list of objects")
    return turns_of(messages, raw=True)


def _step(step: Any) -> Step:
    if isinstance(step, str):
        return {"text": step, "calls": decode_text(step)}
    if not isinstance(step, Mapping) or not ("text" in step or "calls" in step):
        raise ValueError("turns: expected steps with `calls`, or with a `text` that contains them")
    text = step.get("text") or ""
    if not isinstance(text, str) or not isinstance(step.get("calls", []), list):
        raise ValueError("turns: a step's `text` must be a string and its `calls` a list")
    return {"text": text, "calls": step["calls"] if "calls" in step else decode_text(text)}
