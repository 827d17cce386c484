"""ToolRL's reward (arXiv 2504.13958): format plus correctness of the calls, and on request the length of the thought.

`agentrl.rewards.turns` puts these parts together for an episode; on single replies they give what the official code
gives (tests/support/toolrl_text.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from agentrl.config.schema import ToolRl

Range = tuple[float, float]  # lowest and highest reward
LONG_THOUGHT = 512  # words that earn the whole length reward


def limits(switches: ToolRl, step: int) -> tuple[Range, Range]:
    """Lowest and highest format reward and correctness reward at training step `step`."""
    (f_low, f_high), (c_low, c_high) = (0.0, 1.0), ((-1.0, 1.0) if switches.correct_max1 else (-3.0, 3.0))
    if switches.schedule == "two_stage":  # correctness counts a third at first, format a half later
        if step < 30:
            c_low, c_high = c_low / 3, c_high / 3
        else:
            f_low, f_high = f_low / 2, f_high / 2
    if switches.schedule == "smooth":  # from -2..2 each towards -1..1 and -3..3 at step 150
        f_high, f_low = max(2 - (2 - f_high) * step / 150, 1.0), min(-2 + (2 + f_low) * step / 150, -1.0)
        c_high, c_low = min((c_high - 2) * step / 150 + 2, 3.0), max((c_low + 2) * step / 150 - 2, -3.0)
    return (f_low, f_high), (c_low, c_high)


def correctness(pred: Any, gold: Sequence[Mapping[str, Any]], bounds: Range) -> float:
    """The calls {"name", "parameters"} of a reply against the reference's, in `bounds`; equal calls earn `high`.

    S = Jaccard(names) + sum over gold calls of the best unused same-name call's [Jaccard(parameter names) + number of
    equal values]; the reward is low + (high - low) S / S_max with S_max = 1 + sum(1 + number of parameters).
    Malformed calls earn `low`, if the comparison gets as far as to notice.
    """
    low, high = bounds
    if pred == gold:
        return high
    try:
        score = share_of_best(pred, gold)
    except (TypeError, KeyError, AttributeError):  # the policy wrote some other JSON; upstream catches everything
        return low
    return (high - low) * score + low


def share_of_best(pred: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Any]]) -> float:
    """S / S_max of `correctness`."""
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
    """Common elements over all elements, repetitions counted; 1 for two empty lists."""
    common = (Counter(first) & Counter(second)).total()
    return common / (len(first) + len(second) - common) if first or second else 1.0


def length_reward(thought: str) -> float:
    """Words of the thought over 512, rounded to two places, 1 at most."""
    return min(round(len(thought.split()) / LONG_THOUGHT, 2), 1.0)
