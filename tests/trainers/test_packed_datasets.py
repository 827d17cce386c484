"""Updates of SFT, DPO and FocalLoRA: TRL's losses, whichever engine scores them and however they are cut."""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from trl import DPOTrainer, SFTTrainer

from agentrl.config.schema import Trainer as Settings
from agentrl.models.adapters import lora_config
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.objectives.focal import focal_loss
from agentrl.scoring.packed import PackedEngine
from agentrl.scoring.sequence import Scores
from agentrl.trainers.arguments import focal_arguments, sft_arguments
from agentrl.trainers.focal_lora import FocalLoraTrainer, collate, focal_config
from agentrl.trainers.preferences import PairTrainer, pair_dataset
from agentrl.trainers.sft import IGNORED, TraceSFTTrainer
from tests.support.helpers import changed, composed, dpo_arguments
from tests.trainers.test_kl import move


def ids(size: int, seed: int) -> list[int]:
    return torch.randint(20, 400, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM = ids(40, 0)


def with_engine(engine: str) -> Settings:
    settings: Settings = changed(composed().trainer, engine=engine)
    return settings


def sft(out: Path, engine: str, lora: bool = False) -> tuple[Any, Any]:
    """Five traces after two prompts, with observations between the targets; the last has no target."""
    config = composed("algo=sft", f"model/lora={'on' if lora else 'off'}")
    rows = []
    for number, size in enumerate((12, 30, 7, 18, 9)):
        prompt, trace = SYSTEM + ids(25, 1 + number // 2), ids(size, 10 + number)
        labels = [IGNORED if 3 <= i < 6 or number == 4 else token for i, token in enumerate(trace)]
        rows.append({"input_ids": prompt + trace, "labels": [IGNORED] * len(prompt) + labels})
    trainer = TraceSFTTrainer(
        model=load_model(config.model),
        chat=load_chat(config.model, Needs(tools=False, system=True)),
        args=sft_arguments(config, out),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora_config(config.model),
        settings=with_engine(engine),
    )
    return trainer, trainer.data_collator(rows)


def dpo(out: Path, engine: str, lora: bool = False) -> tuple[Any, Any]:
    config = composed("model/lora=on") if lora else composed()
    prompt, other = SYSTEM + ids(60, 5), SYSTEM + ids(20, 6)
    rows = [
        {"prompt_ids": prompt, "chosen_ids": ids(14, 7), "rejected_ids": ids(3, 8)},
        {"prompt_ids": other, "chosen_ids": ids(5, 9), "rejected_ids": ids(22, 10)},
        {"prompt_ids": other, "chosen_ids": ids(11, 11), "rejected_ids": ids(6, 12)},
    ]
    trainer = PairTrainer(
        model=load_model(config.model),
        args=dpo_arguments(out),
        train_dataset=pair_dataset(rows, "b"),
        processing_class=load_chat(config.model, Needs(tools=False, system=True)).tokenizer,
        peft_config=lora_config(config.model),
        settings=with_engine(engine),
    )
    return trainer, trainer.data_collator(rows)


def focal(out: Path, engine: str = "padded", lora: bool = True) -> tuple[Any, Any]:
    config = composed("algo=focal_lora", "model/lora=on")
    model = load_model(config.model)
    model.set_attn_implementation("eager")
    heads = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads, dtype=torch.bool)
    heads[0, 2] = heads[1, 0] = True
    rows = []
    for number, (size, reply) in enumerate(((30, 4), (12, 8), (45, 1))):
        system = [4 <= place < 15 for place in range(size)]
        onset = [False] * (size - 1) + [True] * reply + [False]
        rows.append({"input_ids": ids(size + reply, number), "system": system + [False] * reply, "onset": onset})
    trainer = FocalLoraTrainer(
        heads=heads,
        tokens_per_batch=10**6,
        model=get_peft_model(model, focal_config(model, heads, config.model.lora)),
        args=focal_arguments(config, out),
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, 0),
    )
    return trainer, collate(rows, 0)


def moved(made: Any, out: Path, engine: str, lora: bool = False) -> tuple[Any, Any]:
    """A trainer in double precision, away from where it starts: DPO's margins are small differences of large sums."""
    trainer, batch = made(out, engine, lora)
    move(trainer, 0.01)
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            model.double()
    trainer.model.train()
    return trainer, batch


def update(trainer: Any, batch: Any, budget: int = 10**6, loss_of: Any = None) -> tuple[float, Any, dict[str, float]]:
    """Loss, gradient and metrics of the batch as one update."""
    trainer._budget = budget
    trainer._metrics["train"] = defaultdict(list)
    trainer.state.num_input_tokens_seen = trainer._total_train_tokens = 0
    trainer.model.zero_grad()
    loss = (loss_of or type(trainer).compute_loss)(trainer, trainer.model, copy.deepcopy(batch))
    loss.backward()
    slopes = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), slopes, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_same(one: Any, other: Any, exact: float = 1e-5) -> None:
    assert one[0] == pytest.approx(other[0], rel=exact)
    assert float((one[1] - other[1]).norm()) <= exact * float(other[1].norm()) and other[1].norm() > 1e-3
    assert one[2] == pytest.approx(other[2], rel=10 * exact, abs=10 * exact)


ADAPTED = pytest.param(dpo, True, marks=pytest.mark.slow)


def test_loss_gradient_and_metrics_of_sft_are_trl_s(tmp_path: Path) -> None:
    trainer, batch = moved(sft, tmp_path, "padded")
    assert_same(update(trainer, batch), update(trainer, batch, loss_of=SFTTrainer.compute_loss), exact=1e-6)


def test_loss_gradient_and_metrics_of_dpo_are_trl_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up scores in double precision: TRL's head knows no double, and DPO's margins need it."""
    trainer, batch = dpo(tmp_path, "padded")
    trainer.model.train()
    shape, reference = batch["input_ids"].shape, trainer.ref_model
    shape = (shape[0], shape[1] - 1)
    made = torch.rand(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    policy = (-9 * made[0]).requires_grad_()
    tables = {"policy": (policy, made[1], made[2] > 0.5, made[3]), "reference": (policy.detach() * 1.1, *made[1:])}

    def table(model: Any) -> Any:
        return tables["reference" if model is reference else "policy"]

    def answer(self: Any, **inputs: Any) -> Any:
        wanted = inputs["labels"][:, 1:] != IGNORED
        logps, entropy, best, logits = (one.masked_fill(~wanted, 0) for one in table(self))
        return SimpleNamespace(log_probs=logps, entropy=entropy, is_top1=best, mean_logits=logits)

    def score(model: Any, sequences: Any, router: bool = False) -> Scores:
        rows = [
            ids[kept.bool()].tolist() for ids, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        places = [(rows.index(list(one.ids)), [place - 1 for place in one.scored]) for one in sequences]
        return Scores(*([values[row][columns] for row, columns in places] for values in table(model)))

    trainer.scorer.score = score
    found = []
    for loss_of in (PairTrainer.compute_loss, DPOTrainer.compute_loss):
        with monkeypatch.context() as patch:
            if loss_of is DPOTrainer.compute_loss:
                patch.setattr(type(trainer.model), "__call__", answer)
            trainer._metrics["train"] = defaultdict(list)
            trainer.state.num_input_tokens_seen = trainer._total_train_tokens = 0
            loss = loss_of(trainer, trainer.model, copy.deepcopy(batch))
        slopes = torch.autograd.grad(loss, policy)[0]
        found.append((loss.item(), slopes, {name: values[-1] for name, values in trainer._metrics["train"].items()}))
    assert_same(*found, exact=1e-6)
    assert abs(found[0][0] - found[1][0]) < 1e-12


@pytest.mark.parametrize(("made", "lora"), [(sft, False), (dpo, False), ADAPTED])
def test_engines_and_cuts_make_the_same_update(
    made: Any, lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Any] = []
    run = PackedEngine._run
    monkeypatch.setattr(PackedEngine, "_run", lambda *args: packed.append(args[2]) or run(*args))
    plain_trainer, batch = moved(made, tmp_path, "padded", lora)
    plain = update(plain_trainer, batch)
    assert len(plain_trainer.cut(batch)) == 1 and not packed
    trainer, _ = moved(made, tmp_path, "packed", lora)
    whole = update(trainer, batch)
    assert len(packed) == (1 if made is sft else 2)  # DPO's reference is packed, too
    assert PackedEngine().cost(packed[0]) < 0.7 * batch["input_ids"].numel()
    for one in (whole, *(update(trainer, batch, budget) for budget in (150, 1)), update(plain_trainer, batch, 150)):
        assert_same(one, plain)
    trainer._budget = 1
    assert len(trainer.cut(batch)) == (5 if made is sft else 3)


@pytest.mark.parametrize("made", [sft, pytest.param(dpo, marks=pytest.mark.slow)])
def test_with_adapters_and_gradient_checkpointing(made: Any, tmp_path: Path) -> None:
    plain_trainer, batch = moved(made, tmp_path, "padded", lora=True)
    trainer, _ = moved(made, tmp_path, "packed", lora=True)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(update(trainer, batch, 150), update(plain_trainer, batch))


def test_pieces_of_focal_lora_make_the_update_of_the_whole(tmp_path: Path) -> None:
    trainer, batch = moved(focal, tmp_path, "padded", lora=True)

    def plain(trainer: Any, model: Any, inputs: Any) -> torch.Tensor:
        names = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        outputs = model(**names, output_attentions=True, use_cache=False)
        loss, mass = focal_loss(outputs.attentions, inputs["system"], inputs["onset"], trainer._heads)
        seen = int(inputs["attention_mask"].sum())
        trainer._metrics["train"] = {"system_mass": [mass.item()], "num_tokens": [seen]}
        return loss

    expected = update(trainer, batch, loss_of=plain)
    for budget, pieces in ((10**6, 1), (80, 2), (1, 3)):
        assert_same(update(trainer, batch, budget), expected, exact=1e-6)
        assert len(trainer.cut(batch)) == pieces
    assert trainer.idle_loss(trainer.model).item() == 0
