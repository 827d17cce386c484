"""Rotary embeddings that change with the length of a sequence: `longrope`, of Phi-3 and Phi-4-mini.

These models have two sets of frequencies, one for sequences up to a length and one for longer ones. transformers
chooses a set for a whole forward pass, by the longest sequence in it. So the log-probs of a short sequence would depend
on what shares its pass, and on how an update is cut. Here every sequence has the frequencies that it has alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

KIND = "longrope"


def longest_short(model: nn.Module) -> float:
    """Return the length in tokens up to which sequences have the first set, infinity if the model has only one."""
    return min((_length(module) for module in _moving(model)), default=math.inf)


@contextmanager
def own_frequencies(model: nn.Module, long: Tensor) -> Iterator[None]:
    """Give the places of long sequences the second set in this block, and all other places the first.

    long: mask (B, T) over the places of the forward pass, or (B, 1) for whole rows, on the CPU. transformers' choice is
    right if all places are alike, so it is left alone then.
    """
    with ExitStack() as hooks:
        if bool(long.any()) and not bool(long.all()):
            for module in _moving(model):
                hook = module.register_forward_hook(partial(_mix, long), with_kwargs=True)
                hooks.callback(hook.remove)
        yield


def _moving(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if getattr(module, "rope_type", None) == KIND]


def _length(module: Any) -> int:
    length: int = module.config.rope_parameters["original_max_position_embeddings"]
    return length


def _mix(
    long: Tensor, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Take cosine and sine of `output` at long places. The pass holds a long sequence, so `output` has the second set.

    Elsewhere take those of the first set. Positions of short sequences are below its length, so the bound changes none.
    """
    hidden, positions = (*args, *kwargs.values())[:2]
    first = module.forward(hidden, positions.clamp(max=_length(module) - 1))
    chosen = long.unsqueeze(-1).to(positions.device)
    return tuple(torch.where(chosen, one, other) for one, other in zip(output, first, strict=True))
