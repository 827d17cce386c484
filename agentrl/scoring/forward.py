"""The packed engine behind TRL's call: trainers that score padded rows with labels get each distinct token once."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.sequence import Sequence

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
IGNORED = -100


def pack_forward(models: Many[Any], engine: str, router: bool, say: Callable[[str], None]) -> None:
    """With engine=packed: let models score padded rows packed. Says so where they cannot be.

    TRL's `add_fused_lm_head` must have made their heads. A call `model(input_ids, attention_mask, labels,
    fused_lm_head=True)` then gives the same output as before; every other call goes through unchanged.
    """
    if engine == "padded":
        return
    for model in models:
        if reason := why_not_packed(model, router):
            say(f"trainer.engine=padded is taken, since this model cannot be packed: {reason}")
            return
    for model in models:
        _pack(model)


def _pack(model: Any) -> None:
    scorer = PackedEngine()
    inner = scorer.prepare(model)
    padded = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        ids, mask, labels = (kwargs.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if ids is None or labels is None or mask is None or mask.dim() != 2 or not kwargs.get("fused_lm_head"):
            return padded(*args, **kwargs)
        rows = [_row(*row) for row in zip(ids, mask.bool(), labels, strict=True)]
        if not scorer.fits(self, [sequence for sequence, _ in rows]):
            return padded(*args, **kwargs)
        return _scored(scorer, self, rows, labels[:, 1:] != IGNORED)

    inner.forward = types.MethodType(forward, inner)


def _row(ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Sequence, Tensor]:
    """A padded row (L,) as a sequence whose labels are scored, and the columns of what is scored."""
    places = mask.nonzero().flatten()
    targets = (labels != IGNORED)[places].nonzero().flatten()
    targets = targets[targets > 0]
    return Sequence(ids[places].tolist(), targets.tolist()), places[targets]


def _scored(scorer: PackedEngine, model: Any, rows: list[tuple[Sequence, Tensor]], wanted: Tensor) -> Any:
    """TRL's output: fields (B, L - 1), 0 where the label of the next token is -100."""
    output, own = scorer.run(model, [sequence for sequence, _ in rows])
    row = torch.cat([torch.full_like(columns, number) for number, (_, columns) in enumerate(rows)])
    index, scored = (row, torch.cat([columns for _, columns in rows]) - 1), torch.cat(own)

    def spread(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        whole = values.new_zeros(wanted.shape).index_put(index, values[0][scored])
        return whole.masked_fill(~wanted, 0)

    fields = {name: spread(getattr(output, name)) for name in FIELDS}
    return FusedCausalLMOutput(**fields, label_mask=wanted)
