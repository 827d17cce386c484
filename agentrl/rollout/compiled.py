"""Compiles the layers of a decoder for the passes that sampling mostly runs: one new token for each row.

Such a pass waits for the processor that starts operations. A compiled layer starts a few fused ones. Passes with new
tokens of prompts or tool results run uncompiled, because each sequence attends by an operation of its own there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch.fx.experimental import _config
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentrl.rollout.attending import current

BACKEND = "inductor"
_shapes: Any = _config  # torch installs `patch` at run time


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let each layer of the decoder run compiled if every row of a pass has one new token, and restore it at the end.

    torch compiles one graph for all layers and sizes. A size of 1 (rows, trunks) and rows without a trunk need graphs
    of their own. At most 8 are compiled (`torch._dynamo.config.recompile_limit`); other passes run uncompiled.
    """
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        numbers = [one.layer_idx for one in layer.modules() if hasattr(one, "layer_idx")]
        if numbers:
            layer.forward = partial(_forward, layer, numbers[0])
    try:
        with _shapes.patch(use_duck_shape=False):  # equal sizes may differ in the next pass
            yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _forward(layer: Any, number: int, *args: Any, **kwargs: Any) -> Any:
    (now,) = current
    kind: Any = type(layer)
    step = now.step(number)
    if step is None:
        return kind.forward(layer, *args, **kwargs)
    return _compiled(kind, BACKEND)(layer, *args, step=step, **kwargs)


@cache
def _compiled(kind: Any, backend: str) -> Any:
    def decode(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(layer, *args, **kwargs)

    return torch.compile(decode, dynamic=True, backend=backend)
