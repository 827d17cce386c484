"""The packaged tiny checkpoint for minihif and the recipe it comes from."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from agentrl.benches import minihif
from agentrl.chat.format import ChatFormat
from agentrl.models.loading import Needs, load_chat
from agentrl.tiny import recipe_hif as tiny_hif
from agentrl.tiny.recipe import build_model, pretrain
from tests.support.helpers import composed, make_trainer

PACKAGED = Path(str(files("agentrl.tiny") / "tiny_hif"))


@pytest.fixture(scope="module")
def chat():
    return load_chat(composed("algo=hipo").model, Needs(tools=False, system=True))


def test_the_checkpoint_is_small_and_has_the_recipes_tokenizer():
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 1e6
    rebuilt = json.loads(tiny_hif.build_tokenizer(640).backend_tokenizer.to_str())
    assert rebuilt["model"] == json.loads((PACKAGED / "tokenizer.json").read_text())["model"]


def test_words_are_single_tokens_and_any_text_survives(chat):
    for word in (*minihif.WORDS, *minihif.OPENERS):
        assert len(chat.ids(word)) == len(chat.ids(f" {word}")) == 1
    for word in minihif.WORDS:
        assert len(chat.ids(f" {word.upper()}")) == 1
    for text in ("Kölner Dom — 日本語", '{"a": [1, 2.5]}', "\n\t x  y"):
        assert chat.tokenizer.decode(chat.ids(text)) == text


def test_the_base_never_saw_a_rule_of_the_test_split_and_learned_the_replies_alone(chat):
    rng = random.Random(0)
    for index in range(300):
        rule, items, reply = tiny_hif.episode((tiny_hif.lesson_reply, tiny_hif.base_reply)[index % 2], rng)
        assert not minihif.is_held_out(rule)
        ids, labels = tiny_hif.encode(chat, rule, items, reply)
        targets = [label for label in labels if label != -100]
        assert chat.tokenizer.decode(targets) == f"{reply}<|im_end|>"
        assert len(ids) == len(labels)


@pytest.mark.slow
def test_a_short_rebuild_learns():
    torch.manual_seed(0)
    tokenizer = tiny_hif.build_tokenizer(640)
    chat = ChatFormat(tokenizer, None, "content")
    batches = tiny_hif.episodes(chat, tiny_hif.lesson_reply, batch=32, seed=0)
    model = build_model(len(tokenizer), hidden_size=64, layers=2)
    losses = pretrain(model, batches, tokenizer.pad_token_id, steps=150, learning_rate=5e-3, log_every=0)
    assert losses[0] > 5.5, "an untrained network knows nothing: about ln(vocabulary) nats"
    # One of 16 words at random costs 2.8 nats: below that it reads the request.
    assert sum(losses[-10:]) / 10 < 2.0


@pytest.mark.slow
def test_the_base_is_neither_compliant_nor_hopeless(tmp_path: Path):
    from agentrl.core.engine import Decoding, Episode

    trainer = make_trainer(composed("algo=hipo"), tmp_path)
    bench, tasks = trainer.bench, trainer.bench.tasks("test")
    torch.manual_seed(0)
    played = trainer.engine.rollout([Episode(task, bench.environment(task)) for task in tasks], Decoding(1.0))
    scores = [bench.score(task, trajectory).metrics for task, trajectory in zip(tasks, played, strict=True)]
    mean = {name: sum(score[name] for score in scores) / len(scores) for name in ("r_sys", "r_user")}
    assert 0.45 < mean["r_sys"] < 0.65
    assert 0.5 < mean["r_user"] < 0.75
