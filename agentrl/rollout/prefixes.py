"""Finds prompts that begin alike. Many tasks share a system prompt and its tools."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

BLOCK = 32  # prompts are compared in blocks of so many tokens; a shared beginning is rounded down to whole blocks


class Prefixes:
    """Numbers the beginnings of prompts, block by block. Equal beginnings get equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def path(self, ids: Sequence[int]) -> list[int]:
        """Return the number of the first block, of the first two blocks together, and so on."""
        path, last = [], -1
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            block = tuple(ids[end - BLOCK : end])
            last = self._numbers.setdefault((last, block), len(self._numbers))
            path.append(last)
        return path


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two prompts from their paths, rounded down to whole blocks."""
    return BLOCK * bisect_left(range(min(len(one), len(other))), True, key=lambda place: one[place] != other[place])


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])
