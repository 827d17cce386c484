"""DPO's pairs: ranked by reward, kept as sampled; the loss on them by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid

from agentrl.benches import load_bench
from agentrl.chat.format import ChatFormat
from agentrl.core.errors import UserError
from agentrl.core.stop import Interrupted, StopRequest
from agentrl.core.trajectory import Trajectory
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.trainers.preferences import (
    PairTrainer,
    best_and_worst,
    file_pairs,
    keep_pairs,
    pair_dataset,
    sampled_pairs,
)
from tests.support.helpers import composed, dpo_arguments


def rewards(*pairs: tuple[float | None, float | None]) -> list[dict[str, float | None]]:
    return [{"user": user, "sys": sys} for user, sys in pairs]


def test_the_best_and_the_worst_of_a_group() -> None:
    group = rewards((0.2, 0.9), (0.9, 0.1), (0.5, 0.5), (None, 1.0))
    assert best_and_worst(group, 1.0) == (0, 1)  # 1.1, 1.0, 1.0: the first of the least; a missing reward is left out
    assert best_and_worst(group, 0.0) == (1, 0)
    assert best_and_worst(rewards((0.5, 0.5), (0.4, 0.6)), 1.0) is None  # equal: nothing to prefer
    assert best_and_worst(rewards((0.5, 0.5), (None, 0.0)), 1.0) is None


def test_a_signal_ends_the_sampling_of_pairs_between_two_batches() -> None:
    stop, played = StopRequest(), list[int]()

    class Engine:
        def rollout(self, episodes: list[Any], decoding: Any) -> list[Trajectory]:
            played.append(len(episodes))
            stop.signal = 15
            return [Trajectory(one.task.id, [], [], [], [], [], [], []) for one in episodes]

    config = composed("algo=dpo", "bench=minihif", "rollout.num_generations=2", "eval.batch=4")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train", 6)
    console = SimpleNamespace(start=lambda *_: None, update=lambda *_: None, finish=lambda *_: None)
    with pytest.raises(Interrupted):
        list(sampled_pairs(Engine(), bench, None, tasks, config, console, stop))  # type: ignore[arg-type]
    assert played == [4]  # two of the six tasks, two replies each


def test_pairs_are_sampled_once(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"

    def dying() -> Iterator[dict[str, Any]]:
        yield {"prompt_ids": [1]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_pairs(dying(), path)
    assert not path.exists()  # half a file would be taken for a whole one
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "task": "a"}]
    assert keep_pairs(iter(rows), path) == rows
    assert keep_pairs(dying(), path) == rows  # a resumed run samples nothing
    assert pair_dataset(rows, "b").column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    with pytest.raises(UserError, match="no prompt has two replies that differ in reward"):
        pair_dataset([], "minihif")


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return load_chat(composed().model, Needs(tools=False, system=True))


def test_pairs_of_a_file(tmp_path: Path, chat: ChatFormat) -> None:
    row = {"system": "Be brief.", "user": "Why?", "chosen": "So.", "rejected": "Because of many things."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "system": None}) + "\n")
    first, second = file_pairs(str(tmp_path / "pairs.jsonl"), chat)
    assert chat.tokenizer.decode(first["chosen_ids"]).strip() == "So.<|im_end|>"
    assert chat.tokenizer.decode(first["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert "Be brief." in chat.tokenizer.decode(first["prompt_ids"])
    assert "system" not in chat.tokenizer.decode(second["prompt_ids"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not"),
        ('{"user": "a", "chosen": "b"}', "line 1: not"),
        ('["a"]', "line 1: not"),
        ('{"user": 1, "chosen": "b", "rejected": "c"}', "must be text"),
    ],
)
def test_bad_files(line: str, message: str, tmp_path: Path, chat: ChatFormat) -> None:
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        list(file_pairs(str(tmp_path / "pairs.jsonl"), chat))
    with pytest.raises(UserError, match="cannot be read"):
        list(file_pairs(str(tmp_path / "none.jsonl"), chat))


def test_the_loss_of_pairs_by_hand(tmp_path: Path, chat: ChatFormat) -> None:
    """-log sigmoid(beta [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)]), log 2 at the start."""
    rows = [
        {"prompt_ids": [20, 21, 22], "chosen_ids": [30, 31], "rejected_ids": [32]},
        {"prompt_ids": [23], "chosen_ids": [33], "rejected_ids": [34, 35, 36]},
    ]
    arguments = dpo_arguments(tmp_path)
    model = load_model(composed().model)
    trainer = PairTrainer(
        model=model,
        args=arguments,
        train_dataset=pair_dataset(rows, "b"),
        processing_class=chat.tokenizer,
        settings=composed().trainer,
    )
    batch = trainer.data_collator(rows)
    assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(math.log(2), abs=1e-5)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.3)
    reference = load_model(composed().model)

    def logprob(network: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
        logits = type(network).forward(network, torch.tensor([prompt + reply])).logits[0]
        picked = log_softmax(logits, -1)[torch.arange(len(prompt) - 1, len(prompt + reply) - 1), torch.tensor(reply)]
        return picked.sum()

    margins = []
    for row in rows:
        sides = [
            logprob(model, row["prompt_ids"], row[name]) - logprob(reference, row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids")
        ]
        margins.append(sides[0] - sides[1])
    by_hand = -logsigmoid(0.3 * torch.stack(margins)).mean()
    assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(float(by_hand), abs=1e-4)
