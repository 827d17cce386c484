"""A trie holds every sequence, shares what it may, and lays its row out so that one number a token is its mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.scoring.pieces import cut
from agentrl.scoring.trie import Row, Trie

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
BRANCHING = st.lists(TOKENS, min_size=1, max_size=8)


def built(sequences: list[list[int]], min_shared: int) -> tuple[Trie, Row]:
    trie = Trie(min_shared)
    for sequence in sequences:
        trie.add(sequence)
    return trie, trie.row()


def ancestors(row: Row) -> np.ndarray:
    """Whether the token at a place (first index) is on the path to another (second), from the parents."""
    size = len(row.ids)
    seen = np.zeros((size, size), dtype=bool)
    for segment in row.segments:
        path, parent = [], segment.parent
        while parent >= 0:
            path += range(row.segments[parent].start, row.segments[parent].end)
            parent = row.segments[parent].parent
        for place in range(segment.start, segment.end):
            seen[[*path, *range(segment.start, place + 1)], place] = True
    return seen


@settings(max_examples=100, deadline=None)
@given(BRANCHING, st.integers(1, 5))
def test_every_sequence_is_read_back_from_its_places(sequences: list[list[int]], min_shared: int) -> None:
    trie, row = built(sequences, min_shared)
    assert [row.ids[places].tolist() for places in row.places] == sequences
    assert trie.tokens == len(row.ids) == sum(one.end - one.start for one in row.segments)
    assert len(row.ids) <= sum(map(len, sequences))


@settings(max_examples=100, deadline=None)
@given(BRANCHING, st.integers(1, 5))
def test_a_place_sees_its_own_path_and_nothing_else(sequences: list[list[int]], min_shared: int) -> None:
    _, row = built(sequences, min_shared)
    last = np.concatenate([np.full(one.end - one.start, one.last) for one in row.segments])
    places = np.arange(len(row.ids))
    condition = (places[:, None] <= places[None]) & (places[None] < last[:, None])
    assert (condition == ancestors(row)).all()


@settings(max_examples=100, deadline=None)
@given(BRANCHING)
def test_without_a_least_length_no_token_stands_twice(sequences: list[list[int]]) -> None:
    trie, _ = built(sequences, 1)
    assert trie.tokens == len({tuple(one[: end + 1]) for one in sequences for end in range(len(one))})


@settings(max_examples=100, deadline=None)
@given(BRANCHING, st.integers(1, 5))
def test_positions_count_the_tokens_before(sequences: list[list[int]], min_shared: int) -> None:
    _, row = built(sequences, min_shared)
    for segment in row.segments:
        parent = row.segments[segment.parent] if segment.parent >= 0 else None
        before = 0 if parent is None else parent.position + parent.end - parent.start
        assert segment.position == before


def test_a_short_shared_prefix_makes_no_fork() -> None:
    sequences = [[1, 2, 3, 4], [1, 2, 5, 6]]
    assert built(sequences, 2)[0].tokens == 6 and built(sequences, 3)[0].tokens == 8
    longer = [[1, 2], [1, 2, 5, 6]]  # goes on where a segment ends: no new fork
    assert built(longer, 3)[0].tokens == 4


def test_a_sequence_that_ends_inside_a_segment_shares_it() -> None:
    _, row = built([[1, 2, 3, 4], [1, 2]], 16)
    assert len(row.ids) == 4 and row.places[1].tolist() == [0, 1]


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        Trie().add([])


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_pieces_hold_all_groups_in_order_within_the_budget(sizes: list[int], budget: int) -> None:
    def piece():
        total = 0

        def take(size: int) -> int:
            nonlocal total
            total += size
            return total

        return take

    pieces = cut(sizes, budget, piece)
    assert [number for one in pieces for number in one] == list(range(len(sizes)))
    for number, one in enumerate(pieces):
        assert len(one) == 1 or sum(sizes[i] for i in one) <= budget
        if number + 1 < len(pieces):  # a group more would not have fitted
            assert sum(sizes[i] for i in one) + sizes[one.stop] > budget
