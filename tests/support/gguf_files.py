"""A small GGUF file, made of a random network as llama.cpp's converter would make it, with the packaged tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.models.places import checkpoint_path


def write_gguf(file: Path, kind: str = "F32") -> Any:
    """Write a network with its matrices as `kind`; return it, with the matrices as they are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf = pytest.importorskip("gguf", reason="reading GGUF needs the extra gguf")
    source = checkpoint_path("builtin:tiny")
    config = AutoConfig.from_pretrained(source, head_dim=128)  # transformers reads no other from a Qwen3
    torch.manual_seed(0)
    model, quantised = AutoModelForCausalLM.from_config(config, dtype=torch.float32), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(file), "qwen3")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, gguf, AutoTokenizer.from_pretrained(source), Path(source))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            data, kept = weight.numpy(), quantised if weight.dim() == 2 else gguf.GGMLQuantizationType.F32
            stored = gguf.quants.quantize(data, kept)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kept)))
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def _write_tokenizer(writer: Any, gguf: Any, tokenizer: Any, source: Path) -> None:
    from trl.chat_template_utils import qwen2_5_chat_template

    merges = json.loads((source / "tokenizer.json").read_text())["model"]["merges"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(qwen2_5_chat_template)
