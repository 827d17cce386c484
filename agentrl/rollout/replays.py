"""Decoding steps as CUDA graphs: a pass in which every row has one new token is recorded once and replayed afterwards.

Such a pass waits for the processor, which starts thousands of small operations. A replay starts them as one. A recorded
pass reads and writes the same memory each time, so its inputs are copied to where it reads them, and its sizes are
padded. Each set of padded sizes has its own recording. A resize of the cache drops them all.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.rollout.attending import Pass, Reads, Shared, Sizes, current, lay_out_trunks, readers_of
from agentrl.rollout.key_values import Shelf, round_up
from agentrl.rollout.packed import Piece, forward, run

LENGTHS = 128  # lengths are padded to multiples of this, a multiple of key_values.STEP
ROWS = 8  # numbers of rows are padded to multiples of this, smaller numbers to powers of two
PLAIN = 3  # a recording takes as long as this many plain passes, so the sizes must come so often first
KEPT = 16  # recordings at a time
CHECKED = 2  # replays of a recording that are compared with the plain pass
ERROR, ROUNDED = 1e-3, 0.05  # largest relative difference of a row's logits, in float32 and in types of 16 bits
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class Replays:
    """Computes `packed.forward`, by a replay where it can.

    The first replays of a recording are compared with the plain pass. If they differ, or if a pass cannot be recorded,
    a warning says so, `works` is False, and all passes are plain ones.
    """

    def __init__(self, model: Any, record: Record | None = None) -> None:
        """record: records a function, and returns what runs it and the tensor that then holds its result."""
        self._model, self._record = model, record or CudaRecorder()
        self._seen: Counter[Sizes] = Counter()
        self._steps: dict[Sizes, _Step] = {}  # the one that was used longest ago comes first
        self._logits: Tensor | None = None  # where all recordings leave their result
        self._versions = -1, -1  # of the tensors that the recordings read and write
        self.works = True

    def forward(
        self, rows: Shelf[Any], trunks: Shelf[Any], pieces: Sequence[Piece], prompts: Sequence[Piece]
    ) -> Tensor:
        """See `packed.forward`. The result is valid until the next call."""
        if not self.works or not pieces or prompts or any(len(piece.ids) > 1 for piece in pieces):
            return forward(self._model, rows, trunks, pieces, prompts)
        if self._versions != (rows.version, trunks.version):
            self._drop()
        sizes = padded_sizes(rows, trunks, pieces)
        step = self._steps.pop(sizes, None)
        if step is not None and step.checked >= CHECKED:
            self._steps[sizes] = step
            return step.replay(pieces)
        logits = forward(self._model, rows, trunks, pieces, prompts)
        self._versions = rows.version, trunks.version  # the first pass makes the tensors
        self._seen[sizes] += 1
        if self._seen[sizes] > PLAIN:
            self._try(step or self._new(rows, trunks, sizes, logits), pieces, logits)
        return logits

    def _new(self, rows: Shelf[Any], trunks: Shelf[Any], sizes: Sizes, logits: Tensor) -> _Step:
        if self._logits is None:
            self._logits = logits.new_empty(rows.rows, logits.shape[1])
        return _Step(self._model, rows, trunks, sizes, self._logits)

    def _try(self, step: _Step, pieces: Sequence[Piece], logits: Tensor) -> None:
        """Record the step if it is not recorded, replay it, and keep it if the result is that of the plain pass."""
        try:
            if not step.recorded:
                step.record(pieces, self._record)
            wrong = difference(step.replay(pieces), logits)
        except RuntimeError as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
        else:
            rounded = logits.dtype != torch.float32 or torch.is_autocast_enabled(logits.device.type)
            if wrong <= (ROUNDED if rounded else ERROR):
                step.checked += 1
                self._steps[step.sizes] = step
                if len(self._steps) > KEPT:
                    del self._steps[next(iter(self._steps))]
                return
            reason = f"a replayed step was wrong by {wrong:.1%}"
        self.works = False
        self._drop()
        warnings.warn(f"decoding steps are not replayed, which is slower: {reason}", stacklevel=2)

    def _drop(self) -> None:
        self._steps.clear()
        self._seen.clear()
        self._logits = None


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest relative difference of a row of two matrices; NaN if one holds NaN."""
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


def padded_sizes(rows: Shelf[Any], trunks: Shelf[Any], pieces: Sequence[Piece]) -> Sizes:
    """Return the sizes of the recording that serves a pass."""
    count, reads = len(pieces), reads_of(pieces)
    free = len(rows.entries) < rows.rows  # padding needs a free slot to write to
    longest = max(piece.start for piece in pieces) + 1
    number, most, above = 0, 0, 0
    if any(trunk is not None for trunk, _ in reads):
        readers, lengths = readers_of(reads)
        number = min(_power(max(readers) + 1), trunks.rows)
        most = _power(max(map(len, readers.values())))
        above = min(round_up(max(lengths.values()), LENGTHS), trunks.width)
    return Sizes(
        min(_power(count) if count < ROWS else round_up(count, ROWS), rows.rows) if free else count,
        min(round_up(longest, LENGTHS), rows.width),
        number,
        most,
        above,
    )


def reads_of(pieces: Sequence[Piece]) -> Reads:
    """Return what each row reads of a trunk."""
    return tuple((piece.trunk, piece.base) for piece in pieces)


def _power(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()


class CudaRecorder:
    """Records functions as CUDA graphs, which share the memory of what they compute on the way."""

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self._last: torch.cuda.CUDAGraph | None = None  # kept, because a pool cannot be used again after its last graph

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Return what runs the function, and the tensor that then holds its result."""
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):  # restores the usual stream even if the recording fails
            function()  # what is made only once, and cuBLAS's workspace, must exist before
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function()
        usual.wait_stream(self._stream)
        self._last = graph
        return graph.replay, result


class _Step:
    """A recorded pass of some sizes. It leaves its result in `logits` (at least B, V)."""

    def __init__(self, model: Any, rows: Shelf[Any], trunks: Shelf[Any], sizes: Sizes, logits: Tensor) -> None:
        self._model, self._rows, self._trunks, self.sizes = model, rows, trunks, sizes
        self._logits, self._device = logits, logits.device
        # Token ids, positions, slots and places of all rows.
        self._layout = torch.zeros(4, 1, sizes.rows, dtype=torch.long, device=self._device)
        self._shared: dict[tuple[int, int, torch.dtype], Shared] = {}
        self._reads: Reads = ()
        self._again: Callable[[], None] | None = None
        self.checked = 0  # how many replays were compared

    @property
    def recorded(self) -> bool:
        return self._again is not None

    def record(self, pieces: Sequence[Piece], record: Record) -> None:
        """Record the pass. It runs once before the recording, so that tensors made only once exist."""
        self._load(pieces)
        self._run()
        self._again, _ = record(self._run)

    def replay(self, pieces: Sequence[Piece]) -> Tensor:
        """Return the logits (B, V) after each piece."""
        assert self._again is not None
        self._load(pieces)
        self._again()
        return self._logits[: len(pieces)]

    def _load(self, pieces: Sequence[Piece]) -> None:
        """Copy the inputs of a pass to where the recording reads them. Rows beyond the pieces write to a free slot."""
        layout = np.zeros((4, 1, self.sizes.rows), dtype=np.int64)
        layout[2] = len(self._rows.entries)
        layout[:, 0, : len(pieces)] = [
            [piece.ids[0] for piece in pieces],
            [piece.base + piece.start for piece in pieces],
            range(len(pieces)),
            [piece.start for piece in pieces],
        ]
        self._layout.copy_(torch.from_numpy(layout))
        reads = reads_of(pieces)
        if reads != self._reads:
            self._reads = reads
            for kind, old in self._shared.items():
                for one, new in zip(old, self._lay_out(*kind), strict=True):
                    if one is not None and new is not None:
                        one.copy_(new)

    def _run(self) -> Tensor:
        slot, place = self._layout[2:, None]
        none = slot[..., :0], place[..., :0]
        reads: Reads = ((None, 0),) * self.sizes.rows
        current[:] = [_Padded(self._rows, self._trunks, (slot, place), none, self.sizes.length, reads, [], step=self)]
        return self._logits[: self.sizes.rows].copy_(run(self._model, self._layout, 0))

    def shared(self, heads: int, groups: int, dtype: torch.dtype) -> Shared | None:
        """Return how rows read trunks. It is made once for each kind of layer, before the recording."""
        kind = heads, groups, dtype
        if not self.sizes.trunks:
            return None
        if kind not in self._shared:
            self._shared[kind] = Shared(*(one.clone() for one in self._lay_out(*kind) if one is not None))
        return self._shared[kind]

    def _lay_out(self, heads: int, groups: int, dtype: torch.dtype) -> Shared:
        shared = lay_out_trunks(self._reads, heads, groups, dtype, self._device, self.sizes)
        assert shared is not None
        return shared


@dataclass(frozen=True)
class _Padded(Pass):
    """A pass that reads trunks as its step has laid them out."""

    step: _Step | None = None

    def shared(self, heads: int, groups: int, dtype: torch.dtype, device: torch.device) -> Shared | None:
        assert self.step is not None
        return self.step.shared(heads, groups, dtype)
