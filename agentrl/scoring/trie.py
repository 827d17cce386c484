"""Finds shared prefixes of token sequences with a radix tree over their ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
# A fork costs some calls in every layer. It is cheaper to compute a shorter shared prefix twice.
MIN_SHARED = 16


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a fork. In the row it comes before all segments that continue it."""

    start: int  # place of its first token in the row
    end: int  # place after its last token
    last: int  # end of all segments that continue it: the places from `end` to `last` attend to this segment
    parent: int  # index of the segment that it continues, -1 for a root
    position: int  # number of tokens that come before it in a sequence


@dataclass(frozen=True)
class Row:
    """A forest of T distinct tokens laid out depth first, and the places of each sequence's tokens."""

    ids: Ids  # (T,)
    segments: list[Segment]
    places: list[Ids]  # for each sequence, the place of each of its tokens


@dataclass(eq=False)
class _Node:
    ids: Ids
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)


class Trie:
    """A radix tree to which sequences are added one at a time.

    Prefixes shorter than `min_shared` tokens are not shared, unless that needs no new fork.
    """

    def __init__(self, min_shared: int = MIN_SHARED) -> None:
        self._min_shared = min_shared
        self._root = _Node(np.empty(0, np.int64))
        self._ends: list[tuple[_Node, int]] = []  # for each sequence, the node in which it ends, and its length
        self.tokens = 0  # number of distinct tokens

    def add(self, ids: Sequence[int] | Ids) -> None:
        """Add a sequence. Raises ValueError if it is empty."""
        rest, node = np.asarray(ids, dtype=np.int64), self._root
        length = len(rest)
        if length == 0:
            raise ValueError("a sequence without tokens has no place in a trie")
        while True:
            common, child = max(
                ((_common(one.ids, rest), one) for one in node.children), key=lambda pair: pair[0], default=(0, node)
            )
            rest, whole = rest[common:] if common else rest, common and common == len(child.ids)
            if common and len(rest) == 0:
                node = child
                break
            if whole:
                node = child
                continue
            if common >= max(self._min_shared, 1):
                node = _split(child, common)
            elif common:
                rest = np.concatenate([child.ids[:common], rest])
            leaf = _Node(rest, node)
            node.children.append(leaf)
            self.tokens += len(rest)
            node = leaf
            break
        self._ends.append((node, length))

    def row(self) -> Row:
        """Lay out all tokens depth first: the continuations of a segment follow it, in the order they were added."""
        segments: list[Segment] = []
        index: dict[_Node, int] = {}
        starts: list[int] = []
        place = 0
        for node in _depth_first(self._root):
            index[node] = len(starts)
            starts.append(place)
            place += len(node.ids)
        last = dict.fromkeys(index, 0)
        for node in reversed(index):
            last[node] = max([starts[index[node]] + len(node.ids), *(last[child] for child in node.children)])
        for node, number in index.items():
            parent = index.get(node.parent, -1) if node.parent is not None else -1
            before = segments[parent] if parent >= 0 else None
            position = 0 if before is None else before.position + before.end - before.start
            segments.append(Segment(starts[number], starts[number] + len(node.ids), last[node], parent, position))
        ids = np.concatenate([node.ids for node in index]) if index else np.empty(0, np.int64)
        places = [_path(segments, index[node])[:length] for node, length in self._ends]
        return Row(ids, segments, places)


def _common(left: Ids, right: Ids) -> int:
    """Return the length of the shared prefix."""
    size = min(len(left), len(right))
    if size == 0 or left[0] != right[0]:
        return 0
    differ = left[:size] != right[:size]
    first = int(differ.argmax())
    return first if differ[first] else size


def _split(node: _Node, size: int) -> _Node:
    """Split a node: put a new node with its first `size` ids above it. Return the new node."""
    parent = node.parent
    assert parent is not None
    upper = _Node(node.ids[:size], parent, [node])
    parent.children[parent.children.index(node)] = upper
    node.ids, node.parent = node.ids[size:], upper
    return upper


def _depth_first(root: _Node) -> Iterator[_Node]:
    waiting = list(reversed(root.children))
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.children)


def _path(segments: list[Segment], number: int) -> Ids:
    """Return the places of all tokens from the root to the end of a segment."""
    runs = []
    while number >= 0:
        segment = segments[number]
        runs.append(np.arange(segment.start, segment.end))
        number = segment.parent
    return np.concatenate(runs[::-1])
