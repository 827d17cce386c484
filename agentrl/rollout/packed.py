"""Runs one forward pass over the new tokens of many sequences of any length. Earlier tokens are in a cache.

A row is an episode. The rollouts of one prompt may share a slot that holds the prompt (a trunk). `attending.py` holds
the attention. Only the slots are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.rollout.attending import KERNEL, Others, Pass, current, lay_out_trunks
from agentrl.rollout.key_values import Shelf
from agentrl.rollout.norms import joined_norms
from agentrl.scoring.attention import KERNEL as TREE

ORDINARY = ("sdpa", "eager", "flash_attention_2", TREE)  # kernels of the same function, which this kernel can replace
MOVING = ("dynamic", "longrope")  # rotary embeddings that change with the length, so cached keys would become wrong


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence."""

    ids: Sequence[int]  # (n,), n >= 1
    start: int  # number of tokens that its own slot already holds
    trunk: int | None = None  # slot of its prompt among the trunks; None without a trunk
    base: int = 0  # number of tokens of the sequence in that trunk


def forward(
    model: Any, rows: Shelf[Any], trunks: Shelf[Any], pieces: Sequence[Piece], prompts: Sequence[Piece]
) -> Tensor:
    """Run the model over new tokens, store their keys and values, and return the logits (B, V) after each piece.

    Args:
        model: a causal language model inside `packed`.
        rows: the slots of the episodes, with room for the new tokens.
        trunks: the slots of prompts; the trunks that pieces read come first.
        pieces: new tokens of the rows in slots 0..B-1, in order.
        prompts: new tokens of trunks; `trunk` is the slot of each.
    """
    device = next(model.parameters()).device
    last = [piece.start + len(piece.ids) - 1 for piece in pieces]
    ids = [piece.ids[-1] for piece in pieces]
    positions = [piece.base + place for piece, place in zip(pieces, last, strict=True)]
    slots, places = list(range(len(pieces))), list(last)
    others = []
    for slot, piece in enumerate(pieces):
        count = len(piece.ids) - 1
        if count:
            length, before = piece.start + count, piece.base + piece.start
            mask = _causal(count, before, device)
            others.append(Others(slice(len(ids), len(ids) + count), piece.trunk, piece.base, slot, length, mask))
            ids += piece.ids[:-1]
            slots += [slot] * count
            places += range(piece.start, length)
            positions += range(before, before + count)
    split = len(ids)
    for piece in prompts:
        count, length = len(piece.ids), piece.start + len(piece.ids)
        mask = _causal(count, piece.start, device)
        others.append(Others(slice(len(ids), len(ids) + count), piece.trunk, length, None, length, mask))
        ids += piece.ids
        slots += [piece.trunk or 0] * count
        places += range(piece.start, length)
        positions += range(piece.start, length)
    layout = torch.from_numpy(np.array([[ids], [positions], [slots], [places]])).to(device)
    slot, place = layout[2:, None]
    current[:] = [
        Pass(
            rows,
            trunks,
            (slot[..., :split], place[..., :split]),
            (slot[..., split:], place[..., split:]),
            max(last, default=-1) + 1,
            tuple((piece.trunk, piece.base) for piece in pieces),
            others,
        )
    ]
    return run(model, layout, torch.arange(len(pieces), device=device) if others else 0)


def run(model: Any, layout: Tensor, kept: Tensor | int) -> Tensor:
    """Run the model over the pass in `current`, and clear it. layout (at least 2, 1, N): ids and positions of tokens.

    Return the logits (n, V) of the n tokens in `kept`, or of all if it is 0.
    """
    try:
        logits: Tensor = model(input_ids=layout[0], position_ids=layout[1], use_cache=False, logits_to_keep=kept).logits
    finally:
        current.clear()
    return logits[0]


def _causal(count: int, before: int, device: torch.device) -> Tensor | None:
    if not before:
        return None
    return torch.ones(count, before + count, dtype=torch.bool, device=device).tril_(before)


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Set this module's attention kernel on `model` and restore the old one at the end. Inside, only call `forward`."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(KERNEL)
    try:
        with joined_norms(model):
            yield
    finally:
        model.set_attn_implementation(usual)
        lay_out_trunks.cache_clear()  # its tensors are of no use to the next session


def why_unsupported(model: PreTrainedModel) -> str | None:
    """Return the reason why `forward` cannot run a model, or None if it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rotary = getattr(config, "rope_parameters", None) or {}
    if not getattr(model, "_supports_attention_backend", False) or not model._can_set_attn_implementation():
        return "its code has an attention of its own"
    if config._attn_implementation not in ORDINARY:
        return f"its attention kernel is {config._attn_implementation}"
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return "not every layer attends to the whole context"
    if getattr(config, "attn_logit_softcapping", None) or config.model_type == "gpt_oss":
        return "its attention is not a plain softmax"
    if rotary.get("rope_type") in MOVING:
        return "its rotary embeddings change with the length"
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        return "it lies on several devices"
    return None
