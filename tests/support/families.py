"""Tiny random checkpoints of the architectures that people have, with the packaged tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import networks

SIZES: dict[str, Any] = networks.SIZES | {"max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 2}
# What each differs in: windows shorter than an episode, tied or separate embeddings, no padding token.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "pad_token_id": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": None, "pad_token_id": None},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "smollm3": {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "mistral": {"sliding_window": 16, "pad_token_id": None},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


def family_checkpoint(folder: Path, family: str, **changes: Any) -> Any:
    """Write a random checkpoint of a family to `folder`; return its network."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from agentrl.models.places import checkpoint_path

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"))
    torch.manual_seed(0)
    values = SIZES | {"vocab_size": len(tokenizer)} | FAMILIES[family] | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # so that attention matters
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()
