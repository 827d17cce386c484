"""SFT and DPO on packed rows: TRL's losses, gradients and metrics are those of padded rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from agentrl.models.adapters import lora_config
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.scoring.packed import PackedEngine
from agentrl.trainers.arguments import sft_arguments
from agentrl.trainers.preferences import PairTrainer, pair_dataset
from agentrl.trainers.sft import IGNORED, TraceSFTTrainer
from tests.support.helpers import composed, dpo_arguments
from tests.trainers.test_kl import move


def ids(size: int, seed: int) -> list[int]:
    return torch.randint(20, 400, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM = ids(40, 0)


def sft(out: Path, engine: str) -> tuple[Any, Any]:
    """Four traces after two prompts, with observations between the targets."""
    config = composed("algo=sft")
    rows = []
    for number, size in enumerate((12, 30, 7, 18)):
        prompt, trace = SYSTEM + ids(25, 1 + number // 2), ids(size, 10 + number)
        labels = [IGNORED] * len(prompt) + [IGNORED if 3 <= i < 6 else token for i, token in enumerate(trace)]
        rows.append({"input_ids": prompt + trace, "labels": labels})
    trainer = TraceSFTTrainer(
        model=load_model(config.model),
        chat=load_chat(config.model, Needs(tools=False, system=True)),
        args=sft_arguments(config, out),
        train_dataset=Dataset.from_list(rows),
        peft_config=None,
        engine=engine,
    )
    return trainer, trainer.data_collator(rows)


def dpo(out: Path, engine: str, lora: bool = False) -> tuple[Any, Any]:
    config = composed("model/lora=on") if lora else composed()
    prompt, other = SYSTEM + ids(60, 5), SYSTEM + ids(20, 6)
    rows = [
        {"prompt_ids": prompt, "chosen_ids": ids(14, 7), "rejected_ids": ids(3, 8)},
        {"prompt_ids": other, "chosen_ids": ids(5, 9), "rejected_ids": ids(22, 10)},
    ]
    trainer = PairTrainer(
        model=load_model(config.model),
        args=dpo_arguments(out),
        train_dataset=pair_dataset(rows, "b"),
        processing_class=load_chat(config.model, Needs(tools=False, system=True)).tokenizer,
        peft_config=lora_config(config.model),
        engine=engine,
    )
    return trainer, trainer.data_collator(rows)


def dpo_with_adapters(out: Path, engine: str) -> tuple[Any, Any]:
    return dpo(out, engine, lora=True)


@pytest.mark.parametrize("made", [sft, dpo, pytest.param(dpo_with_adapters, marks=pytest.mark.slow)])
def test_losses_gradients_and_metrics_are_those_of_padded_rows(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = []
    run = PackedEngine.run
    monkeypatch.setattr(PackedEngine, "run", lambda *args: packed.append(args[2]) or run(*args))
    found = []
    for engine in ("padded", "packed"):
        trainer, batch = made(tmp_path, engine)
        move(trainer, 0.01)  # away from the reference
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                model.double()  # DPO's margins are small differences of large sums
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, copy.deepcopy(batch))
        loss.backward()
        slopes = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        found.append((loss.item(), slopes, {name: v[-1] for name, v in trainer._metrics["train"].items()}))
    plain, ours = found
    assert len(packed) == (1 if made is sft else 2)  # DPO's reference is packed, too
    assert ours[0] == pytest.approx(plain[0], rel=1e-5)
    assert float((ours[1] - plain[1]).norm()) <= 1e-5 * float(plain[1].norm()) and plain[1].norm() > 1e-3
    assert ours[2] == pytest.approx(plain[2], rel=1e-4, abs=1e-4)
    distinct = PackedEngine().cost(packed[0])
    assert distinct < 0.7 * batch["input_ids"].numel()
