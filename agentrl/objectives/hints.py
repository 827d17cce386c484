"""Hints: a group of rollouts without a success is sampled again with the first turns of the expert trace in its prompt.

GRPO with hints (SAGE, arXiv 2602.03143; GHPO, arXiv 2507.10628) has GRPO's loss. Log-probs are taken under the context
that a rollout was sampled under: the prompt x, or x and the hint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def groups_without_success(solved: Sequence[bool], group: int) -> list[int]:
    """Return the first row of each group in which no rollout solved its task.

    solved: one value for each row; the `group` rollouts of a prompt are consecutive. Raises ValueError if the rows are
    no whole groups.
    """
    if group <= 0 or len(solved) % group:
        raise ValueError(f"{len(solved)} rows are no whole groups of {group}")
    return [first for first in range(0, len(solved), group) if not any(solved[first : first + group])]


def hint_turns(turns: int, share: float) -> int:
    """Return how many of the first turns of a trace the hint shows: ceil(share * turns).

    Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is not in [0, 1]")
    return math.ceil(share * turns - 1e-9)  # without the slack, rounding could turn 0.7 * 10 into 8
