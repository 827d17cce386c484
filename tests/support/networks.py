"""Small random networks with TRL's scoring head."""

from __future__ import annotations

from typing import Any

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def network(family: str = "qwen3", temperature: float = 0.7, **changes: Any) -> Any:
    """A network of a family of transformers with weights large enough that its attention matters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    return model
