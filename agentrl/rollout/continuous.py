"""Continuous batching: samples turns in one running batch. A row leaves when its turn ends, and a waiting row enters.

A row keeps its keys and values from turn to turn, so each token is computed once. The rollouts of one prompt share the
keys and values of the prompt. If two prompts begin alike, the second copies those of the common beginning. The cache
has a budget of tokens. When the budget is used up, new rows wait for room. To make room, the cache of the entry that
was used longest ago is evicted; its tokens are computed again when they are needed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from agentrl.rollout.drawing import Draw
from agentrl.rollout.key_values import Cached, Shelf, round_up
from agentrl.rollout.packed import Piece, forward
from agentrl.rollout.prefixes import BLOCK, Prefixes, common_length, shared_tokens
from agentrl.rollout.replays import Replays
from agentrl.rollout.sampler import Request, Turn, always_false, cut_turn

TOGETHER = 2048  # at most so many new tokens of prompts and tool results in one forward pass
LEAST_SHARED = 64  # tokens; if two prompts begin with so many equal tokens, one waits for the other and copies them
AHEAD = 256  # a row reserves room for so many new tokens when it enters, or for the limit of its turn if that is less


@dataclass(eq=False)
class Row(Cached):
    """The state of one episode. `ids` holds the context and the tokens sampled since."""

    request: Request | None = None  # the turn that is being sampled; None between two turns
    turn: int = -1
    limit: int = 0  # maximum number of tokens of the turn
    random: Random = field(default_factory=Random)
    logprobs: list[float] = field(default_factory=list)
    trunk: Cached | None = None  # the prompt without its last token, if other episodes share it

    @property
    def sampled(self) -> int:
        """Number of tokens sampled in this turn."""
        return len(self.ids) - (len(self.request.ids) if self.request else 0)

    @property
    def width(self) -> int:
        """Number of tokens that its slot must hold."""
        return len(self.ids) - self.base if self.request else self.own


class Continuous:
    """A session (`sampler.Session`) over a model inside `packed.packed`.

    Args:
        model: computes the logits. It is in evaluation mode, and gradients are off.
        draw: draws tokens from logits.
        ends: ids of the tokens that end a turn.
        context: maximum length of a context in tokens, including the turn to be sampled.
        longest_turn: maximum length of a turn in tokens.
        budget: size of the cache in tokens. One row is always held, even if it is longer than the budget.
        replays: computes the passes, if it is given.
    """

    def __init__(
        self,
        model: Any,
        draw: Draw,
        ends: Sequence[int],
        context: int,
        longest_turn: int,
        budget: int,
        replays: Replays | None = None,
    ) -> None:
        self._forward = partial(forward, model) if replays is None else replays.forward
        self._draw = draw
        self._ends, self._context, self._longest_turn, self._budget = tuple(ends), context, longest_turn, budget
        self._rows: Shelf[Row] = Shelf()
        self._trunks: Shelf[Cached] = Shelf()
        self._episodes: dict[int, Row] = {}
        self._prompts: dict[tuple[int, ...], Cached] = {}
        self._prefixes = Prefixes()
        self._lenders: dict[Cached, Cached] = {}  # for entries that got a slot in this step: what they copy from
        self._waiting: deque[Row] = deque()  # rows with a request but without a slot
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
        """Give a trunk to every prompt that several new episodes share."""
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
        """Start a turn and return None. If no token may be sampled, return the empty turn at once."""
        row = self._episodes[request.episode]
        row.turn += 1
        limit = min(request.limit, self._longest_turn, self._context - len(request.ids))
        if limit < 1:
            return cut_turn(request, [], [], self._ends, self._context)
        row.random, row.logprobs = self._draw.stream(request.episode, row.turn), []
        if row.trunk is not None and request.ids[:-1][: len(row.trunk.ids)] != row.trunk.ids:
            row.trunk = None  # the context no longer goes on after the prompt
        if row.turn and row.path:
            del row.path[common_length(row.ids, request.ids) // BLOCK :]
        if row.slot is not None:  # keep the cached tokens with which the request begins, except its last token
            row.held = min(common_length(row.ids[: row.held], request.ids), len(request.ids) - 1)
            if (row.trunk is None and row.base) or row.held < row.base:
                self._rows.drop(row)
        row.request, row.ids, row.limit = request, list(request.ids), limit
        if row.slot is None:
            self._waiting.append(row)
        return None

    def _step(self) -> dict[int, Turn]:
        """Run one forward pass, sample one token per row, and return the turns that ended, by episode."""
        self._clock += 1
        unfinished = self._enter()
        pieces, prompts = self._plan(unfinished)
        active = self._rows.entries[: len(pieces)]
        logits = self._forward(self._rows, self._trunks, pieces, prompts)
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
        """Give slots to waiting rows while there is room. Return the trunks that are not fully computed yet."""
        kept: deque[Row] = deque()
        while self._waiting:
            row = self._waiting.popleft()
            trunk = row.trunk
            lender, comes = self._lender(row)
            if comes:
                kept.append(row)  # it enters when another entry has computed the beginning of its prompt
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
                kept.append(row)  # it enters when its prompt is computed
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
        """Find the entry that shares the longest beginning with the prompt of a waiting row.

        Return that entry, None if no entry shares LEAST_SHARED tokens, and whether it has yet to compute them.
        """
        entry, entries = (row, self._rows.entries) if row.trunk is None else (row.trunk, self._trunks.entries)
        lender, most = None, LEAST_SHARED - 1
        if entry.slot is None and entry.path:
            for one in entries:
                if (shared := shared_tokens(entry.path, one.path)) > most:
                    lender, most = one, shared
        return lender, lender is not None and lender.held < most

    def _borrow(self) -> None:
        """Copy the shared beginnings into the prompts that entered, as far as their lenders still hold them."""
        for entry, lender in self._lenders.items():
            shared = min(shared_tokens(entry.path, lender.path), lender.held, len(entry.ids) - 1)
            if entry.slot is not None and lender.slot is not None and shared > 0:
                shelf: Shelf[Any] = self._rows if isinstance(entry, Row) else self._trunks
                shelf.copy(lender, entry, shared)
        self._lenders.clear()

    def _plan(self, unfinished: list[Cached]) -> tuple[list[Piece], list[Piece]]:
        """Make room for the new tokens of this pass. Return them as pieces of rows and pieces of trunks, by slot."""
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
        """Make room for `trunk` if it is given, and for one more row, by evicting other entries.

        Return whether there is room. There always is if the cache is otherwise empty.
        """
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
        """Empty the slot of the entry that was used longest ago, and return whether there was one to empty.

        An idle row comes first, then a trunk that no active row reads. The trunk `spared` is never evicted.
        """
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
        """Free one slot for a pass that does not fit the budget. Return False if only one sequence is left.

        If nothing idle can be evicted, the active row that has sampled the fewest tokens goes back to the waiting rows.
        """
        if self._evict(None):
            return True
        active = self._active()
        if not active or len(active) + len(unfinished) < 2:
            return False
        youngest = min(reversed(active), key=lambda row: row.sampled)
        self._rows.drop(youngest)
        self._waiting.appendleft(youngest)
        return True
