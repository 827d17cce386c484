"""Scores each distinct token once: the sequences form a trie, and the trie is one row of a forward pass.

The place of a token is its index in the row. Its position is its index in its own sequences, so siblings after a fork
start at the same position. The results equal those of `padded.PaddedEngine` up to rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from agentrl.scoring.attention import KERNEL, Tree, Unpackable
from agentrl.scoring.compiled import compile_layers
from agentrl.scoring.head import language_model, score_places, scores_by_sequence
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.pieces import cut
from agentrl.scoring.rotary import longest_short, own_frequencies
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.scoring.trie import Row, Trie

LONG = 1 << 40  # added to the ids of long sequences in a trie, so that they share nothing with short ones
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # in attention, as families name it
SMALLEST_HEAD = 16  # the smallest number of dimensions of a head that FlexAttention takes on CUDA


def why_not_packed(model: Any, router: bool = False) -> str | None:
    """Return the reason why a model cannot score packed rows exactly, or None if it can.

    router: whether the router loss of a mixture of experts is trained on.
    """
    inner = language_model(model)
    config: PretrainedConfig = inner.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(inner, "_is_stateful", False):
        return f"layers of kind {', '.join(sorted(kinds)) or 'recurrent'} carry state from one sequence to the next"
    if router:
        return "the loss of its router counts each token as often as it occurs in a batch"
    if inner.config._attn_implementation not in ("sdpa", KERNEL) or not inner._can_set_attn_implementation():
        return f"model.attn_implementation={inner.config._attn_implementation}, and trees need sdpa"
    if any(getattr(config, name, 0.0) for name in DROPOUTS):
        return "it uses dropout in attention"
    if inner.device.type == "cuda" and _head_size(config) < SMALLEST_HEAD:
        return f"its heads have {_head_size(config)} dimensions, and FlexAttention needs {SMALLEST_HEAD}"
    return None


class PackedEngine:
    """Scores each distinct token once. If a sequence is longer than a sliding window of the model, it pads instead.

    compiled: compile the model's layers. It needs CUDA. give_up: called with the reason if the first pass shows that
    the model cannot be packed; it may raise an error. From then on the engine pads.
    """

    def __init__(self, compiled: bool = False, give_up: Callable[[str], None] = warnings.warn) -> None:
        self._padded, self._compiled, self._give_up = PaddedEngine(), compiled, give_up
        self._pads = False
        self._short = math.inf  # length up to which sequences have the first set of rotary frequencies

    def prepare(self, model: Any) -> PreTrainedModel:
        """Set the tree kernel on the model inside the wrappers, and return that model. Without a tree it is sdpa."""
        inner = language_model(model)
        self._short = longest_short(inner)
        if inner.config._attn_implementation != KERNEL:
            inner.set_attn_implementation(KERNEL)
            if self._compiled:
                compile_layers(inner)
        return inner

    def cost(self, sequences: Many[Sequence]) -> int:
        if self._pads:
            return self._padded.cost(sequences)
        return _trie(sequences, self._short).tokens

    def cut(self, groups: Many[Many[Sequence]], budget: int) -> list[range]:
        if self._pads:
            return self._padded.cut(groups, budget)

        def piece() -> Callable[[Many[Sequence]], int]:
            trie = Trie()

            def take(group: Many[Sequence]) -> int:
                for sequence in group:
                    trie.add(_marked(sequence, self._short))
                return trie.tokens

            return take

        return cut(groups, budget, piece)

    def score(self, model: Any, sequences: Many[Sequence], router: bool = False) -> Scores:
        if self._pads or not self.fits(model, sequences):
            return self._padded.score(model, sequences, router)
        try:
            output, own = self._run(model, sequences)
        except Unpackable as reason:  # not to be seen before a forward pass
            self._give_up(str(reason))
            self._pads = True
            return self._padded.score(model, sequences, router)
        return scores_by_sequence(output, [len(one) for one in own], torch.cat(own))

    def fits(self, model: Any, sequences: Many[Sequence]) -> bool:
        """Return whether every sequence fits the sliding windows of the model."""
        window = _window(language_model(model).config.get_text_config())
        return max(len(one.ids) for one in sequences) <= window

    def _run(self, model: Any, sequences: Many[Sequence]) -> tuple[Any, list[Tensor]]:
        """Run the packed forward pass. Return the head's output (1, S), and each sequence's indices into it."""
        device = language_model(model).device
        row = _trie(sequences, longest_short(language_model(model))).row()
        last, positions, before = _columns(row)
        ids, long = torch.from_numpy(row.ids % LONG), torch.from_numpy(row.ids >= LONG)
        own = [places[np.asarray(one.scored, np.int64)] for one, places in zip(sequences, row.places, strict=True)]
        scored = np.zeros(len(row.ids), dtype=bool)
        for places in own:
            scored[places] = True
        number = np.cumsum(scored) - 1  # (T,) index of a scored place among all scored places
        with own_frequencies(model, long.unsqueeze(0)):
            output = score_places(
                model,
                torch.from_numpy(before[scored]).to(device),
                ids[torch.from_numpy(scored)].to(device),
                input_ids=ids.unsqueeze(0).to(device),
                position_ids=torch.from_numpy(positions).unsqueeze(0).to(device),
                # A mask with four dimensions stops transformers from making one; only the tree kernel can ignore it.
                attention_mask=torch.zeros(1, 1, 0, 0, device=device),
                tree=Tree(row.segments, torch.from_numpy(last).to(device)),
            )
        return output, [torch.from_numpy(number[places]).to(device) for places in own]


def _head_size(config: PretrainedConfig) -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _trie(sequences: Many[Sequence], short: float) -> Trie:
    trie = Trie()
    for sequence in sequences:
        trie.add(_marked(sequence, short))
    return trie


def _marked(sequence: Sequence, short: float) -> np.ndarray[Any, Any]:
    """Return the ids of a sequence, marked by LONG if it is longer than `short` tokens."""
    ids = np.asarray(sequence.ids, dtype=np.int64)
    return ids + LONG if len(ids) > short else ids


def _columns(row: Row) -> tuple[np.ndarray[Any, Any], ...]:
    """Return three arrays (T,), one value per place of the row.

    last: the end of the places that attend to it. positions: its position in its sequences. before: the place before
    it on its path, or -1 if it is the first.
    """
    last, positions, before = (np.empty(len(row.ids), dtype=np.int64) for _ in range(3))
    for segment in row.segments:
        own = slice(segment.start, segment.end)
        last[own] = segment.last
        positions[own] = np.arange(segment.position, segment.position + segment.end - segment.start)
        before[own] = np.arange(segment.start - 1, segment.end - 1)
        before[segment.start] = row.segments[segment.parent].end - 1 if segment.parent >= 0 else -1
    return last, positions, before


def _window(config: PretrainedConfig) -> float:
    """Return the sliding window of the model in tokens, infinity if no layer has one."""
    kinds = getattr(config, "layer_types", None)
    limited = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None)
    return float("inf") if window is None or not limited else window
