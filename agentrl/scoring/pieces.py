"""Cuts groups of sequences into pieces that fit a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Group = TypeVar("Group")


def cut(groups: Sequence[Group], budget: int, piece: Callable[[], Callable[[Group], int]]) -> list[range]:
    """Cut consecutive groups greedily: a piece ends before the group that would make it exceed `budget` tokens.

    A single group that exceeds the budget is a piece of its own. piece: makes a meter for a new piece. The meter is
    called with each group, and returns the number of tokens of all groups it was called with.
    """
    pieces: list[range] = []
    start, meter = 0, piece()
    for number, group in enumerate(groups):
        if meter(group) > budget and number > start:
            pieces.append(range(start, number))
            start, meter = number, piece()
            meter(group)
    return [*pieces, range(start, len(groups))] if groups else []
