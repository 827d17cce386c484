"""Stores the keys and values of many token sequences. Each sequence fills its own slot from the left."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor
from torch.nn.functional import pad

STEP = 32  # the width of slots, in tokens, is a multiple of this
SPARE = 256  # if slots become wider, they get room for so many more tokens, as far as the budget allows


@dataclass(eq=False)
class Cached:
    """A token sequence. The keys and values of its first `held` tokens are stored."""

    ids: list[int] = field(default_factory=list)
    held: int = 0
    slot: int | None = None
    used: int = 0  # when it was last in a forward pass
    base: int = 0  # number of first tokens whose keys and values are stored in another slot, that of the prompt
    path: list[int] = field(default_factory=list)  # path of its prompt (prefixes.py); empty if a trunk holds the prompt

    @property
    def own(self) -> int:
        """Number of tokens in its own slot."""
        return self.held - self.base


Entry = TypeVar("Entry", bound=Cached)


class Shelf(Generic[Entry]):
    """Slots of equal width, in tensors. The slots that a forward pass needs come first.

    Shapes: S slots, H heads, W tokens of a slot, D dimensions of a head.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # indexed by slot
        self.rows, self.width = 0, 0  # S and W of the tensors
        self.version = 0  # of the tensors: a higher number if they are others than before
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: keys and values (S, H, W, D)
        self._read: dict[int, tuple[tuple[int, int], tuple[Tensor, Tensor]]] = {}  # by layer: what `read` returned last

    def put(self, entry: Entry) -> None:
        """Give an entry an empty slot after all others. Call `fit` before writing to it."""
        entry.slot, entry.held = len(self.entries), entry.base
        self.entries.append(entry)

    def drop(self, entry: Entry) -> None:
        """Remove an entry. The last slot moves into its place."""
        assert entry.slot is not None
        last = self.entries.pop()
        if last is not entry:
            assert last.slot is not None
            if last.own:
                for whole in self._tensors():
                    whole[entry.slot, :, : last.own] = whole[last.slot, :, : last.own]
            last.slot = entry.slot
            self.entries[entry.slot] = last
        entry.slot, entry.held = None, 0

    def copy(self, lender: Entry, entry: Entry, tokens: int) -> None:
        """Copy the keys and values of the first `tokens` tokens of `lender`. `entry` begins with the same tokens."""
        for whole in self._tensors():
            whole[entry.slot, :, :tokens] = whole[lender.slot, :, :tokens]
        entry.held = tokens

    def bring_forward(self, wanted: Container[Entry]) -> None:
        """Reorder the slots so that the entries in `wanted` come first."""
        behind = len(self.entries) - 1
        for place, entry in enumerate(self.entries):
            if entry in wanted:
                continue
            while behind > place and self.entries[behind] not in wanted:
                behind -= 1
            if behind <= place:
                return
            self._swap(place, behind)

    def _swap(self, one: int, other: int) -> None:
        length = max(self.entries[one].own, self.entries[other].own)
        if length:
            for whole in self._tensors():
                kept = whole[one, :, :length].clone()
                whole[one, :, :length] = whole[other, :, :length]
                whole[other, :, :length] = kept
        self.entries[one], self.entries[other] = self.entries[other], self.entries[one]
        self.entries[one].slot, self.entries[other].slot = one, other

    def fit(self, width: int, budget: int) -> None:
        """Resize the tensors to hold all entries at `width` tokens, with spare room as far as `budget` tokens allow."""
        rows = len(self.entries)
        if not rows:
            self.version += self.rows > 0
            self._layers.clear()
            self._read.clear()
            self.rows = self.width = 0
            return
        if rows <= self.rows and width <= self.width and self.rows * self.width <= budget:
            return
        wider = round_up(max(width, self.width if width <= self.width else max(width * 5 // 4, width + SPARE)))
        if rows * wider > budget:
            wider = max(round_up(width), budget // rows // STEP * STEP)
        more = max(rows, min(max(rows * 3 // 2, self.rows), budget // wider))
        grown = (0, 0, 0, max(0, wider - self.width), 0, 0, 0, max(0, more - self.rows))
        self._read.clear()
        for layer, pair in self._layers.items():
            keys, values = (pad(one[:more, :, :wider], grown) for one in pair)
            self._layers[layer] = keys, values
        self.rows, self.width = more, wider
        self.version += 1

    def layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values (S, H, W, D) of a layer. The first new ones (1, H, N, D) give their H and D."""
        if layer not in self._layers:
            made = [one.new_zeros(self.rows, one.shape[1], self.width, one.shape[3]) for one in (keys, values)]
            self._layers[layer] = made[0], made[1]
            self.version += self.rows > 0
        return self._layers[layer]

    def read(self, layer: int, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return keys (count H, D, length) and values (count H, length, D) of the first `count` slots of a layer.

        They are views, and kept as long as the same ones are asked for.
        """
        known = self._read.get(layer)
        if known is None or known[0] != (count, length):
            keys, values = (one.narrow(0, 0, count).narrow(2, 0, length).flatten(0, 1) for one in self._layers[layer])
            known = self._read[layer] = (count, length), (keys.transpose(1, 2), values)
        return known[1]

    def _tensors(self) -> list[Tensor]:
        return [one for pair in self._layers.values() for one in pair]


def round_up(number: int, step: int = STEP) -> int:
    """Round up to a multiple of `step`."""
    return -(-number // step) * step
