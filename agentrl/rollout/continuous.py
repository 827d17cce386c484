"""Turns sampled in one running batch: rows that end leave it, waiting rows enter, and every token is computed once.

A row keeps its keys and values from turn to turn, and rollouts of one prompt share those of the prompt. A prompt copies
those of a beginning that another prompt has, too. The cache has a budget of tokens. Where it is used up, rows wait, and
what has waited longest loses its cache and is computed again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentrl.rollout.drawing import Draw
from agentrl.rollout.key_values import Cached, Shelf, round_up
from agentrl.rollout.packed import Piece, forward
from agentrl.rollout.prefixes import BLOCK, Prefixes, shared_tokens
from agentrl.rollout.sampler import Request, Turn, always_false, cut_turn

TOGETHER = 2048  # new tokens of prompts and of tools' results in one forward pass, at most
LEAST_SHARED = 64  # tokens; a prompt waits for others to compute so many
AHEAD = 256  # tokens that a row is given room for when it enters, or what its turn may have if that is less


@dataclass(eq=False)
class Row(Cached):
    """An episode: `ids` are its context and what it has sampled since."""

    request: Request | None = None  # the turn being sampled; None while nothing is asked
    turn: int = -1
    limit: int = 0  # tokens that the turn may have
    random: Random = field(default_factory=Random)
    logprobs: list[float] = field(default_factory=list)
    trunk: Cached | None = None  # its prompt without the last token, where other episodes have the same

    @property
    def sampled(self) -> int:
        """Tokens of the turn so far."""
        return len(self.ids) - (len(self.request.ids) if self.request else 0)

    @property
    def width(self) -> int:
        """Tokens that its slot has to hold."""
        return len(self.ids) - self.base if self.request else self.own


class Continuous:
    """A session (`sampler.Session`) over a model whose attention is `packed`.

    Args:
        model: what computes logits; in evaluation mode, without gradients.
        draw: how tokens are drawn.
        ends: tokens that end a turn.
        context: tokens of the longest context, the turn included.
        longest_turn: tokens of a turn at most.
        budget: tokens of the cache. One row is held whatever its length.
    """

    def __init__(
        self,
        model: Any,
        draw: Draw,
        ends: Sequence[int],
        context: int,
        longest_turn: int,
        budget: int,
    ) -> None:
        self._model, self._draw = model, draw
        self._ends, self._context, self._longest_turn, self._budget = tuple(ends), context, longest_turn, budget
        self._rows: Shelf[Row] = Shelf()
        self._trunks: Shelf[Cached] = Shelf()
        self._episodes: dict[int, Row] = {}
        self._prompts: dict[tuple[int, ...], Cached] = {}
        self._prefixes = Prefixes()
        self._lenders: dict[Cached, Cached] = {}  # of what entered in this step
        self._waiting: deque[Row] = deque()  # asked, without a slot
        self._clock = 0

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        """See `Session.sample`."""
        self._find_shared(requests)
        turns = {}
        for request in requests:
            if (turn := self._take(request)) is not None:
                turns[request.episode] = turn
        while not turns and any(row.request for row in self._episodes.values()):
            turns = self._step()
            if ready():
                break
        return turns

    def _find_shared(self, requests: Sequence[Request]) -> None:
        """Prompts that several new episodes have in common get a trunk."""
        new = [request for request in requests if request.episode not in self._episodes]
        prompts = Counter(tuple(request.ids[:-1]) for request in new)
        for request in new:
            row = self._episodes[request.episode] = Row()
            prompt = tuple(request.ids[:-1])
            if prompt and prompts[prompt] > 1:
                if prompt not in self._prompts:
                    self._prompts[prompt] = Cached(list(prompt), path=self._prefixes.path(prompt))
                row.trunk = self._prompts[prompt]
            else:
                row.path = self._prefixes.path(request.ids)

    def _take(self, request: Request) -> Turn | None:
        """Start a turn; returned is one that ends before it began."""
        row = self._episodes[request.episode]
        row.turn += 1
        limit = min(request.limit, self._longest_turn, self._context - len(request.ids))
        if limit < 1:
            return cut_turn(request, [], [], self._ends, self._context)
        row.random, row.logprobs = self._draw.stream(request.episode, row.turn), []
        if row.trunk is not None and request.ids[: len(row.trunk.ids)] != row.trunk.ids:
            row.trunk = None
        if row.turn and row.path:
            del row.path[common_length(row.ids, request.ids) // BLOCK :]
        if row.slot is not None:  # what the cache holds and the request repeats
            row.held = min(common_length(row.ids[: row.held], request.ids), len(request.ids) - 1)
            if (row.trunk is None and row.base) or row.held < row.base:
                self._rows.drop(row)
        row.request, row.ids, row.limit = request, list(request.ids), limit
        if row.slot is None:
            self._waiting.append(row)
        return None

    def _step(self) -> dict[int, Turn]:
        """One forward pass, and the turns that end with it."""
        self._clock += 1
        unfinished = self._enter()
        pieces, prompts = self._plan(unfinished)
        active = self._rows.entries[: len(pieces)]
        logits = forward(self._model, self._rows, self._trunks, pieces, prompts)
        for trunk, piece in zip(unfinished, prompts, strict=False):
            trunk.held += len(piece.ids)
        drawing: list[Row] = []
        for row, piece in zip(active, pieces, strict=True):
            row.held += len(piece.ids)
            row.used = self._clock
            if row.trunk is not None:
                row.trunk.used = self._clock
            if row.held == len(row.ids):
                drawing.append(row)
        if not drawing:
            return {}
        if len(drawing) < len(pieces):
            logits = logits[[row.slot for row in drawing]]
        tokens, logprobs = self._draw.tokens(logits, [row.random for row in drawing])
        turns = {}
        for place, (row, token) in enumerate(zip(drawing, tokens, strict=True)):
            row.ids.append(token)
            if logprobs is not None:
                row.logprobs.append(logprobs[place])
            assert row.request is not None
            if token in self._ends or row.sampled == row.limit:
                sampled = row.ids[len(row.request.ids) :]
                given = row.logprobs if logprobs is not None else None
                turns[row.request.episode] = cut_turn(row.request, sampled, given, self._ends, self._context)
                row.request = None
        return turns

    def _enter(self) -> list[Cached]:
        """Give slots to waiting rows while there is room; returns the trunks to be computed first."""
        kept: deque[Row] = deque()
        while self._waiting:
            row = self._waiting.popleft()
            trunk = row.trunk
            lender, comes = self._lender(row)
            if comes:
                kept.append(row)  # it enters when the beginning of its prompt is there
                continue
            if trunk is not None and trunk.slot is None and not self._make_room(row, trunk):
                kept.append(row)
                break
            if trunk is not None and trunk.slot is None:
                self._trunks.put(trunk)
                trunk.used = self._clock
                if lender is not None:
                    self._lenders[trunk] = lender
            if trunk is not None and trunk.held < len(trunk.ids):
                kept.append(row)  # it enters when its prompt is there
                continue
            if not self._make_room(row, None):
                kept.append(row)
                break
            row.base = 0 if trunk is None else len(trunk.ids)
            self._rows.put(row)
            row.used = self._clock
            if lender is not None and trunk is None:
                self._lenders[row] = lender
        self._waiting.extendleft(reversed(kept))
        return [trunk for trunk in self._trunks.entries if trunk.held < len(trunk.ids)]

    def _lender(self, row: Row) -> tuple[Cached | None, bool]:
        """What holds the longest beginning of a prompt that is about to enter, and whether that is still to come."""
        entry, entries = (row, self._rows.entries) if row.trunk is None else (row.trunk, self._trunks.entries)
        lender, most = None, LEAST_SHARED - 1
        if entry.slot is None and entry.path:
            for one in entries:
                if (shared := shared_tokens(entry.path, one.path)) > most:
                    lender, most = one, shared
        return lender, lender is not None and lender.held < most

    def _borrow(self) -> None:
        """Copy the beginnings of prompts that entered, as far as their lenders still hold them."""
        for entry, lender in self._lenders.items():
            shared = min(shared_tokens(entry.path, lender.path), lender.held, len(entry.ids) - 1)
            if entry.slot is not None and lender.slot is not None and shared > 0:
                shelf: Shelf[Any] = self._rows if isinstance(entry, Row) else self._trunks
                shelf.copy(lender, entry, shared)
        self._lenders.clear()

    def _plan(self, unfinished: list[Cached]) -> tuple[list[Piece], list[Piece]]:
        """The new tokens of this pass, by slot, after room was made for them."""
        while not self._fits(self._width(), len(self._rows.entries)) and self._give_up(unfinished):
            pass
        active, width = self._active(), self._width()
        reading = {row.trunk for row in active if row.trunk is not None} | set(unfinished)
        length = self._length_of_trunks()
        self._rows.fit(width, self._budget - length * len(self._trunks.entries))
        self._trunks.fit(length, self._budget - self._rows.rows * self._rows.width)
        self._borrow()
        self._rows.bring_forward(set(active))
        self._trunks.bring_forward(reading)
        room = TOGETHER
        pieces = []
        for row in self._rows.entries[: len(active)]:
            ids = row.ids[row.held : row.held + max(1, room)]
            room -= len(ids) - 1
            pieces.append(Piece(ids, row.own, None if row.trunk is None else row.trunk.slot, row.base))
        prompts = []
        for trunk in unfinished:
            ids = trunk.ids[trunk.held : trunk.held + max(0, room)]
            if not ids:
                break
            room -= len(ids)
            prompts.append(Piece(ids, trunk.held, trunk.slot))
        return pieces, prompts

    def _make_room(self, row: Row, trunk: Cached | None) -> bool:
        """Room for one row more, or for a trunk and a row; what has waited longest makes it."""
        base = 0 if row.trunk is None else len(row.trunk.ids)
        ahead = len(row.ids) - base + min(AHEAD, row.limit - row.sampled)
        while True:
            if self._fits(max(ahead, self._width()), len(self._rows.entries) + 1, trunk):
                return True
            if not self._evict(row.trunk):
                return not self._active() and all(one is row.trunk for one in self._trunks.entries)

    def _fits(self, width: int, rows: int, trunk: Cached | None = None) -> bool:
        length = self._length_of_trunks()
        count = len(self._trunks.entries)
        if trunk is not None:
            length, count = max(length, round_up(len(trunk.ids))), count + 1
        return rows * round_up(width) + count * length <= self._budget

    def _length_of_trunks(self) -> int:
        return max((round_up(len(trunk.ids)) for trunk in self._trunks.entries), default=0)

    def _width(self) -> int:
        return max((row.width for row in self._rows.entries), default=0)

    def _active(self) -> list[Row]:
        return [row for row in self._rows.entries if row.request]

    def _evict(self, spared: Cached | None) -> bool:
        """Take the slot of what has waited longest: of a row of which nothing is asked, or else of an unread trunk."""
        idle = [row for row in self._rows.entries if not row.request]
        if idle:
            self._rows.drop(min(idle, key=lambda row: row.used))
            return True
        read = {row.trunk for row in self._active()} | {spared}
        unread = [one for one in self._trunks.entries if one not in read and one.held == len(one.ids)]
        if unread:
            self._trunks.drop(min(unread, key=lambda trunk: trunk.used))
        return bool(unread)

    def _give_up(self, unfinished: list[Cached]) -> bool:
        """Make room in a pass that has too little; False where one sequence is all that it holds."""
        if self._evict(None):
            return True
        active = self._active()
        if not active or len(active) + len(unfinished) < 2:
            return False
        youngest = min(reversed(active), key=lambda row: row.sampled)
        self._rows.drop(youngest)
        self._waiting.appendleft(youngest)
        return True


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])
