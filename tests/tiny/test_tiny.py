"""The packaged tiny checkpoint and the recipe it comes from."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from agentrl.benches import load_bench, minihop
from agentrl.chat.format import ChatFormat
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.tiny import recipe as tiny
from tests.support.helpers import composed

PACKAGED = Path(str(files("agentrl.tiny") / "tiny"))


@pytest.fixture(scope="module")
def chat():
    return load_chat(composed().model, Needs(tools=True, system=False))


def test_the_checkpoint_is_small_and_whole(chat):
    size = sum(path.stat().st_size for path in PACKAGED.iterdir())
    assert size < 6e6
    assert (PACKAGED / "model.safetensors").is_file()
    model = load_model(composed().model)
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() < 2e6
    assert len(chat.tokenizer) == model.config.vocab_size


@pytest.mark.slow
def test_the_recipe_makes_the_packaged_tokenizer(chat):
    rebuilt = tiny.build_tokenizer(1536, seed=0)
    text = (PACKAGED / "tokenizer.json").read_text()
    assert json.loads(rebuilt.backend_tokenizer.to_str())["model"] == json.loads(text)["model"]


def test_any_text_survives_the_tokenizer(chat):
    for text in ("Kölner Dom — 日本語 \U0001f600", '{"a": [1, 2.5, null]}', "\n\t x  y"):
        assert chat.tokenizer.decode(chat.ids(text)) == text


def test_names_are_single_tokens_wherever_they_stand(chat):
    for name in minihop.NAMES[::37]:
        alone = chat.ids(name)
        assert len(alone) == 1
        for text in (f"of {name}.", f'"{name}"', f"What is {name}'s", f"\n{name}\n"):
            assert alone[0] in chat.ids(text)


def test_the_base_never_saw_a_test_chain():
    rng = random.Random(0)
    for index in range(500):
        phase = tiny.PHASES[index % len(tiny.PHASES)]
        task, with_trace = tiny.base_episode(index, rng, phase)
        chain = task.data["chain"]
        assert not minihop.is_held_out(tuple(r for name in chain for r in minihop.RELATIONS if r.name == name))
        assert len(chain) <= (3 if with_trace else max(length for length, _ in phase.hops))


def test_labels_of_the_base_leave_prompts_and_observations_out(chat):
    rng = random.Random(1)
    for index in range(20):
        ids, labels = tiny.encode_episode(chat, *tiny.base_episode(index, rng, tiny.PHASES[1]))
        text = chat.tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != -100])
        assert len(ids) == len(labels)
        assert "tool_response" not in text and "Question" not in text
        assert text.rstrip().endswith("</answer><|im_end|>")


@pytest.mark.slow
def test_a_short_rebuild_learns():
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer(1536, seed=0)
    phase = tiny.Phase("base", steps=120, drill_steps=0, learning_rate=3e-3, hops=((1, 0.9), (2, 0.1)))
    chat = ChatFormat(tokenizer, None, "content")
    batches = tiny.episodes(chat, phase, batch=16, seed=0)
    model = tiny.build_model(len(tokenizer))
    losses = tiny.pretrain(model, batches, tokenizer.pad_token_id, phase.steps, phase.learning_rate, log_every=0)
    assert losses[0] > 6, "an untrained network knows nothing: about ln(vocabulary) nats"
    # Everything but the names, which are at most a tenth of the tokens and cost up to ln(400) = 6 nats each.
    assert sum(losses[-10:]) / 10 < 1.2


@pytest.mark.slow
def test_before_training_the_solve_rate_leaves_room_both_ways(tmp_path: Path):
    from agentrl.core.engine import Decoding, Episode
    from tests.support.helpers import make_trainer

    config = composed("algo=grpo")
    trainer = make_trainer(config, tmp_path)
    trainer.model.eval()
    bench = load_bench(config.bench)
    solved: dict[int, list[float]] = {}
    tasks = bench.tasks("test")
    for start in range(0, len(tasks), 50):
        batch = tasks[start : start + 50]
        played = trainer.engine.rollout([Episode(t, bench.environment(t)) for t in batch], Decoding(1.0))
        for task, trajectory in zip(batch, played, strict=True):
            solved.setdefault(len(task.data["chain"]), []).append(bench.score(task, trajectory).metrics["solve_rate"])
    rates = {hops: sum(values) / len(values) for hops, values in sorted(solved.items())}
    overall = sum(map(sum, solved.values())) / len(tasks)
    assert 0.05 < overall < 0.35, rates
    assert rates[1] > 0.9, "the base must know single calls"
    assert rates[4] < 0.1, "the base must not know long chains"
