"""A sentence encoder: a text becomes a vector of length 1, and the product of two vectors is their similarity.

It reads encoders of sentence-transformers that pool by the mean, such as all-MiniLM-L6-v2, and gives the same vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from agentrl.core.errors import UserError, first_line
from agentrl.models.complete import missing_weights

Vectors = NDArray[np.float32]
SETTINGS, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"  # sentence-transformers' files


class SentenceEncoder:
    """The encoder at `path`, a directory or a hub id, on the CPU.

    `key` is the key that holds `path`; messages name it.

    Raises:
        UserError: there is no encoder, it is incomplete, or it pools otherwise than by the mean.
    """

    def __init__(self, path: str, key: str):
        place = str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
        try:
            pooling, settings = _read(place, POOLING), _read(place, SETTINGS)
            self._tokenizer = AutoTokenizer.from_pretrained(place)
            model, report = AutoModel.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{key}={path} cannot be loaded ({first_line(error)}); run make minilm and set {key}=models/minilm, or "
                "name a hub id"
            ) from error
        if not pooling:
            raise UserError(f"{key}={path} has no {POOLING}; name a sentence encoder, such as all-MiniLM-L6-v2")
        if not (pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"):
            raise UserError(f"{key}={path} pools otherwise than by the mean; name an encoder like all-MiniLM-L6-v2")
        if lost := missing_weights(report, besides="pooler."):  # the mean of the states needs no pooler
            raise UserError(f"{key}={path}: {len(lost)} weights are missing (first: {lost[0]}); fetch it again")
        self._longest: int = settings.get("max_seq_length") or model.config.max_position_embeddings
        self._model = model.eval()
        self.dimension: int = model.config.hidden_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 32) -> Vectors:
        """Return one row a text, (N, dimension) in float32, each of norm 1. Long texts are cut at the limit."""
        found = np.zeros((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # texts of one length need little padding
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = self._tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            )
            states = self._model(**inputs).last_hidden_state  # (B, T, D)
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            found[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found


def _read(place: str, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of the checkpoint; empty if it has no such file."""
    file = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    return {} if file is None else dict(json.loads(Path(file).read_text(encoding="utf-8")))
