"""Compiles the layers of a model for packed rows. Sampling and padded rows go through the same layers uncompiled."""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: PreTrainedModel) -> None:
    """Let each layer of the decoder run compiled if its input is a packed row (keyword `tree`).

    torch compiles one graph for all layers and all lengths, at the first forward pass and at the first backward pass.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # As a method of the layer, it goes with it into copies of the model.
            layer.forward = MethodType(_forward, layer)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    kind: Any = type(self)
    run = kind.forward if kwargs.get("tree") is None else _compiled(kind)
    return run(self, *args, **kwargs)


@cache
def _compiled(kind: Any) -> Any:
    return torch.compile(kind.forward, dynamic=True)
