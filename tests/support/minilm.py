"""A real sentence encoder, all-MiniLM-L6-v2, and a small random one of the same form.

`make minilm` makes models/minilm; AGENTRL_MINILM names another folder that has it. Without either the test skips.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from tests.conftest import ROOT

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sits", "runs", "stock", "falls", "."]


def minilm_path() -> Path:
    """The folder of the encoder; skips the test where there is none."""
    folder = Path(os.environ.get("AGENTRL_MINILM", ROOT / "models" / "minilm"))
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} holds no encoder: run make minilm, or name one with AGENTRL_MINILM")
    return folder


def small_encoder(folder: Path, longest: int = 8) -> Path:
    """Write a random encoder that knows the words `WORDS` and reads `longest` tokens; return its folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,  # vectors in all directions
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
