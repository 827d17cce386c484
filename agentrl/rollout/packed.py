"""Runs one forward pass over the new tokens of many sequences of any length. Earlier tokens are in a cache.

A row is an episode. The rollouts of one prompt may share a slot that holds the prompt (a trunk). The last new tokens of
all rows attend in one batch; rows with the same trunk read it together. The other new tokens (of a prompt or of a tool
result) attend row by row. Only the slots are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

from agentrl.rollout.key_values import Shelf
from agentrl.scoring.attention import KERNEL as TREE

KERNEL = "agentrl_packed"
ORDINARY = ("sdpa", "eager", "flash_attention_2", TREE)  # kernels of the same function, which this kernel can replace
MOVING = ("dynamic", "longrope")  # rotary embeddings that change with the length, so cached keys would become wrong


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence."""

    ids: Sequence[int]  # (n,), n >= 1
    start: int  # number of tokens that its own slot already holds
    trunk: int | None = None  # slot of its prompt among the trunks; None without a trunk
    base: int = 0  # number of tokens of the sequence in that trunk


@dataclass(frozen=True)
class _Trunks:
    """How the last tokens of B rows read T trunks. A trunk has at most P tokens and at most R rows."""

    keys: Tensor  # (T, R) the rows of each trunk, in any order, padded with row 0
    back: Tensor  # (B,) index of each row in the flattened (T * R); the inverse of `keys`
    hidden: Tensor  # (B, 1, 1, P) -inf after the end of the row's trunk, everywhere for a row without a trunk; else 0


@dataclass(frozen=True)
class _Others:
    """The new tokens of a row except its last one, or all new tokens of a trunk."""

    tokens: slice  # their places in the pass
    trunk: int | None
    base: int
    slot: int | None  # slot of the row; None for tokens of a trunk
    length: int  # number of tokens in the row's slot, or in the trunk if there is no row, including the new ones
    mask: Tensor | None  # (n, base + length); None means causal from the first token on


@dataclass(frozen=True)
class _Pass:
    """The layout of a forward pass: first the last tokens of B rows, then their other tokens, then those of trunks."""

    rows: Shelf[Any]
    trunks: Shelf[Any]
    in_rows: tuple[Tensor, Tensor]  # slot and place of each token of a row
    in_trunks: tuple[Tensor, Tensor]  # slot and place of each token of a trunk
    hidden: Tensor  # (B, 1, 1, L) -inf after the last token of a row in its own slot, else 0
    shared: _Trunks | None
    others: list[_Others]


_current: list[_Pass] = []


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Write key and value (1, H', N, D) to their slots, then attend with query (1, H, N, D). Returns (1, N, H, D).

    This is the kernel that transformers calls in each layer. `_current` holds the layout of the pass.
    """
    (now,) = _current
    layer: Any = module.layer_idx
    # After a norm, autocast leaves keys in float32 and rounds them before each product. Round them here to save memory.
    new = key[0].to(value.dtype).transpose(0, 1), value[0].transpose(0, 1)
    split = len(now.in_rows[0])
    rows = now.rows.write(layer, new[0][:split], new[1][:split], now.in_rows)
    trunks = now.trunks.write(layer, new[0][split:], new[1][split:], now.in_trunks)
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    answers = []
    if len(now.hidden):
        last = query[0, :, : len(now.hidden)].transpose(0, 1).unflatten(1, (-1, groups))  # (B, H', G, D)
        answers.append(_attend_last(now, last * scale, rows, trunks).flatten(1, 2))
    for other in now.others:
        keys, values = (_read(other, in_trunks, in_rows)[None] for in_trunks, in_rows in zip(trunks, rows, strict=True))
        grouped = query.device.type == "cpu" or use_gqa_in_sdpa(other.mask, keys, values)
        if not grouped:  # with a mask and shared heads CUDA would take its plain kernel, which stores all scores
            keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
        answer = scaled_dot_product_attention(
            query[:, :, other.tokens],
            keys,
            values,
            attn_mask=other.mask,
            is_causal=other.mask is None,
            scale=scaling,
            enable_gqa=grouped and groups > 1,
        )
        answers.append(answer[0].transpose(0, 1))
    return torch.cat(answers)[None], None


def _read(other: _Others, trunks: Tensor, rows: Tensor) -> Tensor:
    """Return the keys or values (H', base + length, D) that `other` attends to, including its own."""
    if other.trunk is None:
        return rows[other.slot, :, : other.length]
    if other.slot is None:
        return trunks[other.trunk, :, : other.base]
    return torch.cat([trunks[other.trunk, :, : other.base], rows[other.slot, :, : other.length]], dim=1)


def _attend_last(now: _Pass, query: Tensor, rows: tuple[Tensor, Tensor], trunks: tuple[Tensor, Tensor]) -> Tensor:
    """Attend with one scaled query per row (B, H', G, D) to its trunk and its own slot. Returns the same shape."""
    count, length = now.hidden.shape[0], now.hidden.shape[-1]
    keys, values = (one[:count, :, :length] for one in rows)
    own = query @ keys.transpose(2, 3) + now.hidden
    shared = now.shared
    if shared is None:
        return own.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
    (used, most), prompt = shared.keys.shape, shared.hidden.shape[-1]
    trunk_keys, trunk_values = (one[:used, :, :prompt] for one in trunks)
    heads, groups = query.shape[1:3]

    def to_trunks(one: Tensor) -> Tensor:  # (B, H', G, X) -> (T, H', R G, X)
        return one[shared.keys].transpose(1, 2).reshape(used, heads, most * groups, -1)

    def to_rows(one: Tensor) -> Tensor:  # (T, H', R G, X) -> (B, H', G, X)
        return one.unflatten(2, (most, groups)).transpose(1, 2).flatten(0, 1)[shared.back]

    above = to_rows(to_trunks(query) @ trunk_keys.transpose(2, 3)) + shared.hidden
    weights = torch.cat([above, own], dim=-1).softmax(-1, dtype=torch.float32).to(values.dtype)
    return to_rows(to_trunks(weights[..., :prompt]) @ trunk_values) + weights[..., prompt:] @ values


AttentionInterface.register(KERNEL, attend)


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
            others.append(_Others(slice(len(ids), len(ids) + count), piece.trunk, piece.base, slot, length, mask))
            ids += piece.ids[:-1]
            slots += [slot] * count
            places += range(piece.start, length)
            positions += range(before, before + count)
    split = len(ids)
    for piece in prompts:
        count, length = len(piece.ids), piece.start + len(piece.ids)
        mask = _causal(count, piece.start, device)
        others.append(_Others(slice(len(ids), len(ids) + count), piece.trunk, length, None, length, mask))
        ids += piece.ids
        slots += [piece.trunk or 0] * count
        places += range(piece.start, length)
        positions += range(piece.start, length)
    where = torch.tensor([slots, places], device=device)
    longest = max(last, default=-1) + 1
    hidden = _minus_infinity(torch.arange(longest, device=device) > where[1, : len(pieces), None])
    _current[:] = [
        _Pass(
            rows,
            trunks,
            (where[0, :split], where[1, :split]),
            (where[0, split:], where[1, split:]),
            hidden,
            _shared_trunks(pieces, device),
            others,
        )
    ]
    try:
        logits: Tensor = model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.arange(len(pieces), device=device),
        ).logits
    finally:
        _current.clear()
    return logits[0]


def _causal(count: int, before: int, device: torch.device) -> Tensor | None:
    if not before:
        return None
    return torch.ones(count, before + count, dtype=torch.bool, device=device).tril_(before)


def _shared_trunks(pieces: Sequence[Piece], device: torch.device) -> _Trunks | None:
    readers: dict[int, list[int]] = {}
    for row, piece in enumerate(pieces):
        if piece.trunk is not None:
            readers.setdefault(piece.trunk, []).append(row)
    if not readers:
        return None
    most = max(map(len, readers.values()))
    keys = [[*readers.get(trunk, [])] for trunk in range(max(readers) + 1)]
    back = [0] * len(pieces)
    for trunk, members in readers.items():
        for place, row in enumerate(members):
            back[row] = trunk * most + place
    filled = [members + [0] * (most - len(members)) for members in keys]
    lengths = torch.tensor([piece.base for piece in pieces], device=device)
    hidden = _minus_infinity(torch.arange(max(piece.base for piece in pieces), device=device) >= lengths[:, None])
    return _Trunks(torch.tensor(filled, device=device), torch.tensor(back, device=device), hidden)


def _minus_infinity(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None, None]


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Set this module's attention kernel on `model` and restore the old one at the end. Inside, only call `forward`."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(KERNEL)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


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
