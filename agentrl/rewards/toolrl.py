"""ToolRL's reward (arXiv 2504.13958): format plus correctness of the calls, and optionally the length of the thought.

`agentrl.rewards.turns` combines these parts for an episode. On single replies they equal the official code
(tests/support/toolrl_text.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from agentrl.config.schema import ToolRl

Range = tuple[float, float]  # lowest and highest reward
LONG_THOUGHT = 512  # words that earn the full length reward


def reward_bounds(switches: ToolRl, step: int) -> tuple[Range, Range]:
    """Return the (lowest, highest) format reward and the (lowest, highest) correctness reward at a training step."""
    (f_low, f_high), (c_low, c_high) = (0.0, 1.0), ((-1.0, 1.0) if switches.correct_max1 else (-3.0, 3.0))
    if switches.schedule == "two_stage":  # correctness counts one third before step 30, format counts half from then on
        if step < 30:
            c_low, c_high = c_low / 3, c_high / 3
        else:
            f_low, f_high = f_low / 2, f_high / 2
    if switches.schedule == "smooth":  # both start at -2..2; at step 150 format has -1..1 and correctness -3..3
        f_high, f_low = max(2 - (2 - f_high) * step / 150, 1.0), min(-2 + (2 + f_low) * step / 150, -1.0)
        c_high, c_low = min((c_high - 2) * step / 150 + 2, 3.0), max((c_low + 2) * step / 150 - 2, -3.0)
    return (f_low, f_high), (c_low, c_high)


def correctness(pred: Any, gold: Sequence[Mapping[str, Any]], bounds: Range) -> float:
    """Compare the calls {"name", "parameters"} of a reply with the reference calls; return a reward within `bounds`.

    S = Jaccard(names) + sum over gold calls of [Jaccard(parameter names) + number of equal values] of the best unused
    call of the same name. The reward is low + (high - low) S / S_max with S_max = 1 + sum(1 + number of parameters).
    Equal calls earn `high`. Malformed calls earn `low` if the comparison fails on them.
    """
    low, high = bounds
    if pred == gold:
        return high
    try:
        score = share_of_best(pred, gold)
    # the policy wrote other JSON; the official code catches every error here
    except (TypeError, KeyError, AttributeError):
        return low
    return (high - low) * score + low


def share_of_best(pred: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Any]]) -> float:
    """Return S / S_max of `correctness`."""
    score = multiset_jaccard([call["name"] for call in gold], [call["name"] for call in pred])
    used: set[int] = set()
    for wanted in gold:
        best, chosen = 0.0, -1
        for i, call in enumerate(pred):
            if i in used or call["name"] != wanted["name"]:
                continue
            given, parameters = call["parameters"], wanted["parameters"]
            earned = multiset_jaccard(list(parameters.keys()), list(given.keys()))
            earned += sum(key in given and given[key] == value for key, value in parameters.items())
            if earned > best:
                best, chosen = earned, i
        if chosen >= 0:
            used.add(chosen)
            score += best
    return score / (1 + sum(1 + len(call["parameters"]) for call in gold))


def multiset_jaccard(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return the share of common elements among all, counting repetitions; 1 for two empty lists."""
    common = (Counter(first) & Counter(second)).total()
    return common / (len(first) + len(second) - common) if first or second else 1.0


def length_reward(thought: str) -> float:
    """Return the number of words of the thought over 512, rounded to two places, at most 1."""
    return min(round(len(thought.split()) / LONG_THOUGHT, 2), 1.0)
