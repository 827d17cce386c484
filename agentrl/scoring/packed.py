"""Every distinct token once: the sequences become a trie, and the trie one row of a forward pass.

A token's place in the row is where its segment stands, its position is that in its own sequences: positions restart at
a fork. The numbers are those of `padded.PaddedEngine` up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from agentrl.scoring.attention import KERNEL, Tree
from agentrl.scoring.head import language_model, score_places, scores_by_sequence
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.pieces import cut
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.scoring.trie import Row, Trie

SMALLEST_HEAD = 16


def why_not_packed(model: Any, router: bool = False) -> str | None:
    """Why a model cannot score packed rows exactly; None where it can. `router`: its router's loss is trained on."""
    inner = language_model(model)
    config: PretrainedConfig = inner.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(inner, "_is_stateful", False):
        return f"layers of kind {', '.join(sorted(kinds)) or 'recurrent'} read on from one sequence into the next"
    if router:
        return "the loss of its router counts tokens as often as they stand in a batch"
    if inner.config._attn_implementation not in ("sdpa", KERNEL) or not inner._can_set_attn_implementation():
        return f"model.attn_implementation={inner.config._attn_implementation}, and trees need sdpa"
    if getattr(config, "attention_dropout", 0.0):
        return "it drops out attention"
    if inner.device.type == "cuda" and _head_size(config) < SMALLEST_HEAD:
        return f"its heads have {_head_size(config)} dimensions, and FlexAttention needs {SMALLEST_HEAD}"
    return None


class PackedEngine:
    """Scores each distinct token once. Sequences longer than a sliding window of the model are padded instead."""

    def __init__(self) -> None:
        self._padded = PaddedEngine()

    def prepare(self, model: Any) -> PreTrainedModel:
        """Let the attention of the model inside take trees, and return that. Without a tree it computes as before."""
        inner = language_model(model)
        if inner.config._attn_implementation != KERNEL:
            inner.set_attn_implementation(KERNEL)
        return inner

    def cost(self, sequences: Many[Sequence]) -> int:
        return _trie(sequences).tokens

    def cut(self, groups: Many[Many[Sequence]], budget: int) -> list[range]:
        def piece() -> Callable[[Many[Sequence]], int]:
            trie = Trie()

            def take(group: Many[Sequence]) -> int:
                for sequence in group:
                    trie.add(sequence.ids)
                return trie.tokens

            return take

        return cut(groups, budget, piece)

    def score(self, model: Any, sequences: Many[Sequence], router: bool = False) -> Scores:
        if not self.fits(model, sequences):
            return self._padded.score(model, sequences, router)
        output, own = self._run(model, sequences)
        return scores_by_sequence(output, [len(one) for one in own], torch.cat(own))

    def fits(self, model: Any, sequences: Many[Sequence]) -> bool:
        """Whether no sliding window of the model is shorter than a sequence."""
        window = _window(language_model(model).config.get_text_config())
        return max(len(one.ids) for one in sequences) <= window

    def _run(self, model: Any, sequences: Many[Sequence]) -> tuple[Any, list[Tensor]]:
        """The packed forward pass: the head's output (1, S), and where in it each sequence's scored tokens are."""
        device = language_model(model).device
        row = _trie(sequences).row()
        last, positions, before = _columns(row)
        own = [places[np.asarray(one.scored, np.int64)] for one, places in zip(sequences, row.places, strict=True)]
        scored = np.zeros(len(row.ids), dtype=bool)
        for places in own:
            scored[places] = True
        number = np.cumsum(scored) - 1  # of a scored place among all that are
        output = score_places(
            model,
            torch.from_numpy(before[scored]).to(device),
            torch.from_numpy(row.ids[scored]).to(device),
            input_ids=torch.from_numpy(row.ids).unsqueeze(0).to(device),
            position_ids=torch.from_numpy(positions).unsqueeze(0).to(device),
            # Four dimensions stop transformers from making a mask; no attention but ours could use this one.
            attention_mask=torch.zeros(1, 1, 0, 0, device=device),
            tree=Tree(row.segments, torch.from_numpy(last).to(device)),
        )
        return output, [torch.from_numpy(number[places]).to(device) for places in own]


def _head_size(config: PretrainedConfig) -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _trie(sequences: Many[Sequence]) -> Trie:
    trie = Trie()
    for sequence in sequences:
        trie.add(sequence.ids)
    return trie


def _columns(row: Row) -> tuple[np.ndarray[Any, Any], ...]:
    """Of every place (T,): where what sees it ends, its position, and the place before it on its path (-1: none)."""
    last, positions, before = (np.empty(len(row.ids), dtype=np.int64) for _ in range(3))
    for segment in row.segments:
        own = slice(segment.start, segment.end)
        last[own] = segment.last
        positions[own] = np.arange(segment.position, segment.position + segment.end - segment.start)
        before[own] = np.arange(segment.start - 1, segment.end - 1)
        before[segment.start] = row.segments[segment.parent].end - 1 if segment.parent >= 0 else -1
    return last, positions, before


def _window(config: PretrainedConfig) -> float:
    """Tokens that every layer of the model sees back; infinite where none is limited."""
    kinds = getattr(config, "layer_types", None)
    limited = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None)
    return float("inf") if window is None or not limited else window
