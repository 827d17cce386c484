"""Attention in a row of packed trees: a token attends to the tokens before it on its own path, not to siblings.

The row is laid out depth first. So a place q attends to a place k exactly if k <= q < last[k], where last[k] is the end
of all segments that continue the segment of k. On a CPU, each segment is computed as a causal block, and the segments
that continue it as a plain block on its keys. The blocks are combined by their log-sum-exp, as in FlashAttention
(arXiv 2205.14135). So no mask is made, no key is copied, and siblings cost nothing. On CUDA, FlexAttention takes the
same condition as a block mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from agentrl.scoring.trie import Segment

KERNEL = "agentrl_tree"  # the name of the kernel in transformers; without a tree it computes sdpa
# Without this option, rows shorter than a block would use FlexAttention's decoding kernel, which cannot be compiled for
# varying lengths.
KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
BLOCK = 128  # FlexAttention's block size, for queries and for keys
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Unpackable(Exception):
    """The attention of a model cannot take packed rows, for the reason in the message."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The layout of a packed row. The forward pass hands it to every layer as the keyword `tree`.

    blocks: the mask for FlexAttention; None on a CPU, which needs none.
    """

    segments: list[Segment]
    last: Tensor  # (T,) int64, on the device of the model
    blocks: BlockMask | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", None if self.last.device.type == "cpu" else block_mask(self.last))


def block_mask(last: Tensor) -> BlockMask:
    """Make the mask for FlexAttention: for each block of queries, the blocks of keys that it sees in part and in full.

    It is computed from `last` (T,) in (T / 128)^2 steps, while `create_block_mask` would compute every pair of places.
    """
    size = len(last)
    number = -(-size // BLOCK)
    start = torch.arange(number, device=last.device) * BLOCK
    ends = pad(last, (0, number * BLOCK - size)).view(number, BLOCK)
    query, key = start[:, None], start[None, :]
    seen = (key <= query) & (ends.amax(1) > query)
    full = (key < query) & (ends.amin(1) >= query + BLOCK)
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=sees(last), seq_lengths=(size, size)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a mask (N, N) of query blocks by key blocks to BlockMask's format.

    Return the number of key blocks of each query block (1, 1, N), and the indices of key blocks with those first
    (1, 1, N, N).
    """
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


def sees(last: Tensor) -> Any:
    """Make FlexAttention's mask function: whether a query attends to a key, by their places in the row."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < last[key])

    return mask


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in a tree: query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D).

    transformers calls it in every layer. Without `tree` it computes sdpa, for inputs of any batch size.
    Raises Unpackable if the row is packed, which its empty mask tells, and there is no tree, or dropout.
    """
    if tree is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise Unpackable("its layers do not hand keywords on to their attention")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise Unpackable("it uses dropout in attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # under autocast, a norm returns queries and keys in float32
        query, key, value = (one.to(torch.get_autocast_dtype(query.device.type)) for one in (query, key, value))
    if query.device.type == "cpu":
        groups, size = query.shape[1] // key.shape[1], value.shape[-1]
        if size != query.shape[-1]:  # DeepSeek's heads; the kernel of a CPU wants equal sizes, and zeros change nothing
            wide = max(size, query.shape[-1])
            query, key, value = (pad(one, (0, wide - one.shape[-1])) for one in (query, key, value))
        out: Tensor = _TreeAttention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), tree, scale)
        out = out[..., :size]
    else:
        out = _flex()(
            query, key, value, block_mask=tree.blocks, scale=scale, enable_gqa=True, kernel_options=KERNEL_OPTIONS
        )
    return out.transpose(1, 2).contiguous(), None


@cache
def _flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


class _TreeAttention(torch.autograd.Function):
    """Attention of a row (1, H, T, D), block by block. Its memory is linear in T."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, scale: float) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)  # blocks are added up in it
        out, lse = torch.empty_like(query, dtype=wide), query.new_empty(query.shape[:3], dtype=wide)
        for segment in tree.segments:
            own = slice(segment.start, segment.end)
            out[:, :, own], lse[:, :, own] = _forward(*_cut(own, query, key, value), 0.0, True, scale=scale)
        for segment in tree.segments:
            own, after = slice(segment.start, segment.end), slice(segment.end, segment.last)
            if after.start == after.stop:
                continue
            more, more_lse = _forward(*_cut(after, query), *_cut(own, key, value), 0.0, False, scale=scale)
            so_far = lse[:, :, after]
            total = torch.logaddexp(so_far, more_lse)
            shares = ((one - total).exp_().unsqueeze(-1) for one in (so_far, more_lse))
            out[:, :, after].mul_(next(shares)).addcmul_(more.to(wide), next(shares))
            lse[:, :, after] = total
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype = grad.dtype
        # In bfloat16 the backward kernel of a CPU takes up to three times as long.
        *wide, lse = (one.to(torch.promote_types(dtype, torch.float32)) for one in (grad, *ctx.saved_tensors))
        grad, query, key, value, out = wide
        grads = [torch.empty_like(one) for one in (query, key, value)]
        # Given the output and the log-sum-exp of the whole row, the backward pass of a block returns the block's part
        # of the whole gradient.
        for segment in ctx.tree.segments:
            own = slice(segment.start, segment.end)
            parts = _backward(*_cut(own, grad, query, key, value, out, lse), 0.0, True, scale=ctx.scale)
            for whole, part in zip(grads, parts, strict=True):
                whole[:, :, own] = part
        for segment in ctx.tree.segments:
            own, after = slice(segment.start, segment.end), slice(segment.end, segment.last)
            if after.start == after.stop:
                continue
            places = (after, own, own)
            cuts = (*_cut(after, grad, query), *_cut(own, key, value), *_cut(after, out, lse))
            parts = _backward(*cuts, 0.0, False, scale=ctx.scale)
            for whole, part, place in zip(grads, parts, places, strict=True):
                whole[:, :, place] += part
        return (*(one.to(dtype) for one in grads), None, None)


def _cut(places: slice, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[:, :, places] for tensor in tensors)


AttentionInterface.register(KERNEL, tree_attention)
AttentionMaskInterface.register(KERNEL, sdpa_mask)
