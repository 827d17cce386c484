"""The sentence encoder: mean pooling by hand, and the published figures of all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from agentrl.core.errors import UserError
from agentrl.models.encoder import SentenceEncoder
from tests.support.minilm import minilm_path, small_encoder

# The example of sentence-transformers' README, with the similarities that it prints for all-MiniLM-L6-v2.
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
PRINTED = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]


def test_an_embedding_is_the_mean_of_the_states_with_norm_1(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path)
    texts = ["a cat sits .", "dog runs", "", "a stock falls " * 9]  # the last one is cut to 8 tokens
    found = SentenceEncoder(str(folder), "judge.path").encode(texts, batch=2)
    assert found.dtype == np.float32 and found.shape == (4, 8)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"]
        ids = ids if len(ids) <= 8 else [*ids[:7], tokenizer.sep_token_id]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6), text


def test_no_text_gives_no_row(tmp_path: Path) -> None:
    assert SentenceEncoder(str(small_encoder(tmp_path)), "judge.path").encode([]).shape == (0, 8)


def test_another_pooling_and_an_incomplete_checkpoint_are_refused(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path / "encoder")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    with pytest.raises(UserError, match=r"bench\.encoder=.* pools otherwise than by the mean"):
        SentenceEncoder(str(folder), "bench.encoder")
    pooling.unlink()
    with pytest.raises(UserError, match=r"has no 1_Pooling/config\.json"):
        SentenceEncoder(str(folder), "bench.encoder")
    with pytest.raises(UserError, match=r"judge\.path=/nowhere .*make minilm"):
        SentenceEncoder("/nowhere", "judge.path")


def test_similarities_are_those_that_the_authors_print() -> None:
    vectors = SentenceEncoder(str(minilm_path()), "judge.path").encode(SENTENCES)
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert vectors @ vectors.T == pytest.approx(np.array(PRINTED), abs=6e-5)
