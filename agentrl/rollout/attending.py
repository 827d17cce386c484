"""The attention of a packed pass (`packed.forward`): writes new keys and values to their slots, then attends.

The last new tokens of all rows attend in one batch (`attend_last`), and rows with the same trunk read it together. The
other new tokens (of a prompt or of a tool result) attend row by row. Many passes have last tokens alone, and in these
starting operations costs more than computing them. So whatever does not differ between layers is made once per pass,
and `attend_last` is a few operations per layer.

Shapes: B rows, N new tokens, T trunks, at most R rows of a trunk, L and P padded lengths of rows and trunks, H' heads
of keys, G heads of queries for each of them (H = H' G), D dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

from agentrl.rollout.key_values import Shelf, round_up

KERNEL = "agentrl_packed"  # the name of the kernel in transformers

Keys = tuple[Tensor, Tensor]  # keys and values
Reads = tuple[tuple[int | None, int], ...]  # of each row: slot of its trunk or None, and number of its tokens there


class Shared(NamedTuple):
    """How the queries of B rows read T trunks together."""

    gather: Tensor  # (T H', R G) index of each query among the flattened (B H), padded with 0
    back: Tensor  # (B H', G) index of each query among the flattened (T H' R G); the inverse of `gather`
    hidden: Tensor  # (T H', 1, P) -inf after the end of a trunk, else 0
    without: Tensor | None  # (B H', 1, 1) -inf for rows without a trunk, else 0; None if each has one


class Last(NamedTuple):
    """How the last new tokens of B rows attend: all that is the same in every layer."""

    hidden: Tensor  # (B H', G, L) -inf after the last token of a row in its own slot, else 0
    shared: Shared | None  # None if no row has a trunk


@dataclass(frozen=True)
class Others:
    """The new tokens of a row except its last one, or all new tokens of a trunk."""

    tokens: slice  # their places in the pass
    trunk: int | None
    base: int
    slot: int | None  # slot of the row; None for tokens of a trunk
    length: int  # number of tokens in the row's slot, or in the trunk if there is no row, including the new ones
    mask: Tensor | None  # (n, base + length); None means causal from the first token on


@dataclass(frozen=True)
class Pass:
    """The layout of a forward pass: first the last tokens of B rows, then their other tokens, then those of trunks."""

    rows: Shelf[Any]
    trunks: Shelf[Any]
    in_rows: tuple[Tensor, Tensor]  # slot and place of each token of a row, each (1, 1, n)
    in_trunks: tuple[Tensor, Tensor]  # slot and place of each token of a trunk, likewise
    longest: int  # tokens in the longest slot of a row
    reads: Reads  # (B,)
    others: list[Others]
    made: dict[tuple[int, int, torch.dtype], Last] = field(default_factory=dict)

    def last(self, heads: int, groups: int, dtype: torch.dtype) -> Last:
        """Lay out the last tokens for layers of H' heads and G groups. Layers that are alike share the result."""
        kind = heads, groups, dtype
        if kind not in self.made:
            places = self.in_rows[1][0, 0, : len(self.reads), None]
            beyond = torch.arange(round_up(self.longest), device=places.device) > places
            hidden = torch.zeros(beyond.shape, dtype=dtype, device=beyond.device).masked_fill_(beyond, -torch.inf)
            whole = hidden[:, None, None].expand(-1, heads, groups, -1).flatten(0, 1).contiguous()
            self.made[kind] = Last(whole, self.shared(heads, groups, dtype, beyond.device))
        return self.made[kind]

    def shared(self, heads: int, groups: int, dtype: torch.dtype, device: torch.device) -> Shared | None:
        """Return how rows read their trunks. None if no row has one."""
        return lay_out_trunks(self.reads, heads, groups, dtype, device)


current: list[Pass] = []  # the pass that runs now; one at most


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

    This is the kernel that transformers calls in each layer.
    """
    # After a norm, autocast leaves keys in float32 and rounds them before each product. Round them here to save memory.
    key = key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    (now,) = current
    layer: Any = module.layer_idx
    rows, trunks = _write(now, layer, key, value)
    heads, count = key.shape[1], len(now.reads)
    groups = query.shape[1] // heads
    answers = []
    if count:
        last = now.last(heads, groups, value.dtype)
        queries = query[:, :, :count] if now.others else query
        own = now.rows.read(layer, count, last.hidden.shape[-1])
        hidden = last.shared.hidden if last.shared else None
        above = None if hidden is None else now.trunks.read(layer, len(hidden) // heads, hidden.shape[-1])
        answers.append(attend_last(queries, own, above, last, scale))
    for other in now.others:
        answers.append(_attend_other(other, rows, trunks, query, scale))
    return answers[0] if len(answers) == 1 else torch.cat(answers, dim=1), None


def attend_last(
    query: Tensor, rows: tuple[Tensor, Tensor], trunks: tuple[Tensor, Tensor] | None, last: Last, scale: float
) -> Tensor:
    """Attend with one query per row (1, H, B, D) to its own slot and to its trunk. Returns (1, B, H, D).

    rows: keys (B H', D, L) and values (B H', L, D) of the slots. trunks: those of T trunks, if rows have one.
    """
    heads, count, size = query.shape[1:]
    keys, values = rows
    flat = query.transpose(1, 2).reshape(count * heads, size).to(values.dtype)
    groups = last.hidden.shape[1]
    scores = torch.baddbmm(last.hidden, flat.view(-1, groups, size), keys, alpha=scale)
    shared = last.shared
    if shared is None or trunks is None:
        return torch.bmm(_weights(scores), values).view(1, count, heads, size)
    # Trunks are read in the order of trunks, and softmax is over a row: `gather` and `back` change between the orders.
    above = torch.baddbmm(shared.hidden, flat[shared.gather], trunks[0], alpha=scale)
    above = above.flatten(0, 1)[shared.back]
    if shared.without is not None:
        above = above + shared.without
    length = above.shape[-1]
    of_trunk, own = _weights(torch.cat([above, scores], dim=-1)).split([length, scores.shape[-1]], dim=-1)
    part = torch.bmm(of_trunk.flatten(0, 1)[shared.gather], trunks[1])
    return torch.baddbmm(part.flatten(0, 1)[shared.back], own, values).view(1, count, heads, size)


def _weights(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def _write(now: Pass, layer: int, keys: Tensor, values: Tensor) -> tuple[Keys, Keys]:
    """Write keys and values (1, H', N, D) to their slots. Return all those of rows and of trunks (S, H', W, D)."""
    rows, trunks = (shelf.layer(layer, keys, values) for shelf in (now.rows, now.trunks))
    heads = _heads(keys.shape[1], keys.device)
    split, count = now.in_rows[0].numel(), keys.shape[2]
    for whole, (slots, places), part in (
        (rows, now.in_rows, slice(0, split)),
        (trunks, now.in_trunks, slice(split, count)),
    ):
        if part.start < part.stop:
            for one, new in zip(whole, (keys, values), strict=True):
                one.index_put_((slots, heads, places), new if part.stop - part.start == count else new[:, :, part])
    return rows, trunks


def _attend_other(other: Others, rows: Keys, trunks: Keys, query: Tensor, scale: float) -> Tensor:
    """Attend with n tokens of one sequence: query (1, H, N, D) -> (1, n, H, D)."""
    keys, values = (_joined(other, in_trunks, in_rows)[None] for in_trunks, in_rows in zip(trunks, rows, strict=True))
    groups = query.shape[1] // keys.shape[1]
    grouped = query.device.type == "cpu" or use_gqa_in_sdpa(other.mask, keys, values)
    if not grouped:  # with a mask and shared heads CUDA would take its plain kernel, which stores all scores
        keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
    answer = scaled_dot_product_attention(
        query[:, :, other.tokens],
        keys,
        values,
        attn_mask=other.mask,
        is_causal=other.mask is None,
        scale=scale,
        enable_gqa=grouped and groups > 1,
    )
    return answer.transpose(1, 2)


def _joined(other: Others, trunks: Tensor, rows: Tensor) -> Tensor:
    """Return the keys or values (H', base + length, D) that `other` attends to, including its own."""
    if other.trunk is None:
        return rows[other.slot, :, : other.length]
    if other.slot is None:
        return trunks[other.trunk, :, : other.base]
    return torch.cat([trunks[other.trunk, :, : other.base], rows[other.slot, :, : other.length]], dim=1)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a layout is padded to."""

    rows: int  # B
    length: int  # L
    trunks: int  # T; 0 if no row has a trunk
    readers: int  # R
    above: int  # P


@lru_cache(maxsize=8)
def lay_out_trunks(
    reads: Reads, heads: int, groups: int, dtype: torch.dtype, device: torch.device, sizes: Sizes | None = None
) -> Shared | None:
    """Lay out the reading of trunks. It stays the same from pass to pass until a row enters or leaves.

    sizes: pad to these. Rows beyond `reads` are padding, and their results are not used.
    """
    if all(trunk is None for trunk, _ in reads):
        return None
    readers, length = readers_of(reads)
    number, most = max(readers) + 1, max(map(len, readers.values()))
    count, width = len(reads), round_up(max(length.values()))
    if sizes is not None:
        number, most, count, width = sizes.trunks, sizes.readers, sizes.rows, sizes.above
    rows = torch.zeros(number, most, dtype=torch.long)  # of each trunk, padded with row 0
    place = torch.zeros(count, dtype=torch.long)  # of each row among (T R)
    for trunk, members in readers.items():
        rows[trunk, : len(members)] = torch.tensor(members)
        place[members] = torch.arange(len(members)) + trunk * most
    lengths = torch.tensor([length.get(trunk, 1) for trunk in range(number)])
    head, group = torch.arange(heads), torch.arange(groups)
    query = head[:, None] * groups + group  # (H', G)
    gather = rows[:, None, :, None] * heads * groups + query[:, None]  # (T, H', R, G)
    slot, within = place // most, place % most
    back = ((slot[:, None] * heads + head) * most + within[:, None])[..., None] * groups + group  # (B, H', G)
    hidden = torch.zeros(number, width, dtype=dtype)
    hidden.masked_fill_(torch.arange(width) >= lengths[:, None], -torch.inf)
    none = [row for row, (trunk, _) in enumerate(reads) if trunk is None]
    without = torch.zeros(count, 1, 1, dtype=dtype)
    without[none] = -torch.inf
    return Shared(
        gather.reshape(number * heads, most * groups).clone().to(device),
        back.flatten(0, 1).clone().to(device),
        hidden.repeat_interleave(heads, 0)[:, None].to(device),
        without.repeat_interleave(heads, 0).to(device) if none or sizes else None,
    )


def readers_of(reads: Reads) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Return the rows that read each trunk, and the number of its tokens that they read (at least 1).

    A row without a trunk reads trunk 0, with weights of 0.
    """
    readers: dict[int, list[int]] = {}
    for row, (trunk, _) in enumerate(reads):
        readers.setdefault(trunk or 0, []).append(row)
    return readers, {trunk: max(1, *(reads[row][1] for row in rows)) for trunk, rows in readers.items()}


@cache
def _heads(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)[:, None].clone()


AttentionInterface.register(KERNEL, attend)
