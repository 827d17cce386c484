"""Which prompts begin alike: a system prompt and its tools are the same for many tasks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

BLOCK = 32  # tokens that are compared at once; what two prompts share beyond whole blocks is not found


class Prefixes:
    """Numbers the beginnings of prompts block by block, so that equal beginnings have equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def path(self, ids: Sequence[int]) -> list[int]:
        """The numbers of the first block, the first two blocks, and so on."""
        path, last = [], -1
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            block = tuple(ids[end - BLOCK : end])
            last = self._numbers.setdefault((last, block), len(self._numbers))
            path.append(last)
        return path


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that the prompts of two paths begin with alike, in whole blocks."""
    return BLOCK * bisect_left(range(min(len(one), len(other))), True, key=lambda place: one[place] != other[place])
