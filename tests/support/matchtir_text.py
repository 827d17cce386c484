"""MatchTIR's reward on the raw text of an episode (arXiv 2601.10712), as its code reads it, quirks included.

Training rewards parsed episodes instead (`agentrl.rewards.turns`): there a tool's output is never read as the policy's
text. One thing is not reproduced: arguments that are no object crash upstream, and count as no arguments here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.rewards.answers import token_f1
from agentrl.rewards.matching import call_rewards
from agentrl.rewards.toolrl import share_of_best

Call = Mapping[str, Any]
TURN = "\n<|im_start|>assistant\n"
_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def without_end_markers(text: str) -> str:
    """A sampled turn without its end-of-text and then end-of-turn marker, each taken off once."""
    return text.strip().removesuffix("<|endoftext|>").strip().removesuffix("<|im_end|>").strip()


def closed_calls(text: str) -> list[dict[str, Any]]:
    """The calls {"name", "arguments"} of all closed blocks; a block that is no such JSON is dropped."""
    calls = []
    for block in _BLOCK.findall(text):
        try:
            call = json.loads(block.strip())
            arguments = call["arguments"]
            if not isinstance(arguments, dict):
                arguments = json.loads(arguments)
            calls.append({"name": str(call["name"]), "arguments": arguments})
        except (ValueError, KeyError, TypeError, RecursionError):  # whatever the policy wrote; upstream drops it too
            continue
    return calls


def text_turn_rewards(
    response: str, gold: Sequence[Call], answer: str, method: str = "greedy", unmatched_penalty: float = 0.0
) -> list[float]:
    """One reward a turn: the F1 of its first <answer>, or else the mean over its calls; 0 without either.

    A turn's text reaches to the next turn, tool outputs included, so an answer tag or a call in an output counts.
    """
    turns = [without_end_markers(turn) for turn in response.split(TURN)]
    answers = [_ANSWER.search(turn) for turn in turns]
    calls = [[] if found else closed_calls(turn) for turn, found in zip(turns, answers, strict=True)]
    earned = iter(call_rewards([call for made in calls for call in made], gold, method, unmatched_penalty))
    rewards = []
    for made, found in zip(calls, answers, strict=True):
        mean = sum(next(earned) for _ in made) / len(made) if made else 0.0
        rewards.append(token_f1(found[1], answer) if found else mean)
    return rewards


def text_answer_f1(response: str, answer: str) -> float:
    """F1 of the first <answer> of the whole response; 0 without one."""
    found = _ANSWER.search(without_end_markers(response))
    return token_f1(found[1], answer) if found else 0.0


def text_toolrl(response: str, gold: Sequence[Call]) -> float:
    """MatchTIR's variant of ToolRL's correctness, in [-3, 3], for all calls of an episode; 0 if it makes none."""
    pred = [{"name": call["name"], "parameters": _object(call["arguments"])} for call in closed_calls(response)]
    wanted = [{"name": call["name"], "parameters": call["arguments"]} for call in gold]
    return 6 * share_of_best(pred, wanted) - 3 if pred else 0.0


def _object(arguments: Any) -> dict[Any, Any]:
    """Arguments that are no object resemble nothing, not even an empty one: None is no parameter's name."""
    return arguments if isinstance(arguments, dict) else {None: None}
