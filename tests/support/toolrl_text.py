"""ToolRL's reward of a single reply, read from its raw text as the official code does, quirks included."""

from __future__ import annotations

import json
import re
from typing import Any

from agentrl.config.schema import ToolRl
from agentrl.rewards.toolrl import Range, correctness, length_reward, reward_bounds

FORMATS = {  # (the reference has calls, it has a response) -> what a whole reply must look like
    (False, True): r"^<think>.*?</think>\n<response>.*?</response>$",
    (True, False): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
    (True, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n<response>.*?</response>$",
    (False, False): r"^<think>.*?</think>$",
}


def score_response(response: str, reference: str, switches: ToolRl, step: int = 0) -> dict[str, float]:
    """`format`, `correctness`, `length` and their sum `score` of one reply, by the official code.

    The calls of a reply stand in its first block alone, one JSON object a line, with the key "parameters".
    """
    (f_low, f_high), bounds = reward_bounds(switches, step)
    parts = {
        "format": f_high if well_formed(response, reference) else f_low,
        "correctness": _correctness_of_text(response, reference, bounds),
        "length": 0.0,
    }
    if switches.with_length and "<think>" in response and "</think>" in response:
        parts["length"] = length_reward(response.split("<think>")[-1].split("</think>")[0].strip())
    return parts | {"score": sum(parts.values())}


def well_formed(response: str, reference: str) -> bool:
    """Does the reply have the parts that the reference has, in order, each once?"""
    tags = [tag for tag in ("tool_call", "response") if f"<{tag}>" in reference]
    once = all(response.count(f"<{tag}>") == response.count(f"</{tag}>") == 1 for tag in tags)
    pattern = FORMATS["tool_call" in tags, "response" in tags]
    return once and re.search(pattern, response, re.DOTALL) is not None


def _correctness_of_text(response: str, reference: str, bounds: Range) -> float:
    if "<tool_call>" not in reference:
        return 0.0
    if "<tool_call>" not in response or "</tool_call>" not in response:
        return bounds[0]
    try:
        pred = _calls(response)
    except (ValueError, RecursionError):  # the policy's text need not be JSON
        return bounds[0]
    return correctness(pred, _calls(reference), bounds)


def _calls(text: str) -> list[Any]:
    block = text.split("<tool_call>")[1].split("</tool_call>")[0].strip()
    return [json.loads(line) for line in block.split("\n")]
