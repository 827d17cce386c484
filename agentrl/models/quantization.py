"""Round the matrices of a base while it is loaded (`model.quantize`)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from agentrl.config.schema import Model


def quantization_of(config: Model) -> Any:
    """Return transformers' settings for `config.quantize`, None without it. Embeddings and output layer stay whole."""
    kind, computed = config.quantize, getattr(torch, config.dtype)
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # an optional package

        return TorchAoConfig(Int8WeightOnlyConfig(version=2))
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if kind == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)
    return None
