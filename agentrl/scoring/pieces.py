"""Cutting groups of sequences into pieces that fit a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Group = TypeVar("Group")


def cut(groups: Sequence[Group], budget: int, piece: Callable[[], Callable[[Group], int]]) -> list[range]:
    """Consecutive groups in pieces, greedily: a piece ends before the group with which it would exceed `budget`.

    piece: makes the meter of a new piece, which takes a group in and returns the tokens of all it has taken. A group
    that exceeds the budget alone is a piece of its own.
    """
    pieces: list[range] = []
    start, meter = 0, piece()
    for number, group in enumerate(groups):
        if meter(group) > budget and number > start:
            pieces.append(range(start, number))
            start, meter = number, piece()
            meter(group)
    return [*pieces, range(start, len(groups))] if groups else []
