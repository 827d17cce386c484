"""Fit a small reward model to a judge's cached verdicts. It replaces a judge that costs money (HIPO's open point).

The fit is a regression, not TRL's RewardTrainer. Preferences fix scores only up to a shift, but HIPO holds the mean of
r_sys to a level, tau. The loss is the cross-entropy of sigmoid(logit) with the verdict; its minimum is the judge's mean
score.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from agentrl.config.judges import Distillation, DistilledJudge
from agentrl.config.target import weights_of
from agentrl.core.errors import UserError, first_line
from agentrl.core.judge import SIDES
from agentrl.core.stats import Interval
from agentrl.judges.agreement import agreement
from agentrl.judges.cache import Entry, choose_entries, open_cache
from agentrl.judges.distilled import RECORD, RewardModelJudge, encode, pad
from agentrl.models.places import checkpoint_path

FEWEST_PROMPTS = 10


@dataclass(frozen=True)
class SideReport:
    """Agreement with the judge on held-out verdicts of one side.

    `mae_of_mean` is the mean absolute error of always giving the training mean.
    """

    train: int
    held_out: int
    mae_of_mean: float
    agreement: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agreement": {name: value.as_dict() for name, value in self.agreement.items()}}


class Regression(Trainer):
    """A model with one logit for each side. A row trains the logit of its own side."""

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the mean cross-entropy over rows: logits (B, 2), `side` (B,) in {0, 1}, `score` (B,) in [0, 1]."""
        side, score = inputs.pop("side"), inputs.pop("score")
        outputs = model(**inputs)
        picked = outputs.logits.gather(1, side[:, None])[:, 0]
        loss = binary_cross_entropy_with_logits(picked.float(), score)
        return (loss, outputs) if return_outputs else loss


def distill(settings: Distillation) -> dict[str, SideReport]:
    """Fit a model, save it in `settings.out` with `distilled.json`, and return its agreement by side.

    `distilled.json` holds settings and report. The verdicts are those of one judge, chosen as in `agentrl judge
    compare`.

    Raises:
        UserError: there are too few verdicts or several judges in the cache, or the base cannot be loaded.
    """
    out = Path(settings.out).expanduser()
    entries = choose_entries(open_cache(settings.cache), settings.judge_model, "judge_model")
    train, held_out = divide(entries, settings.held_out, settings.seed)
    tokenizer, model = _load(weights_of(settings.base))
    rows = [
        {
            "input_ids": encode(tokenizer, entry.request, settings.max_tokens),
            "side": SIDES.index(entry.request.side),
            "score": entry.score,
        }
        for entry in train
    ]
    torch.manual_seed(settings.seed)
    arguments = _make_arguments(settings, out, len(rows))

    def collate(batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            **pad([row["input_ids"] for row in batch], tokenizer.pad_token_id),
            "side": torch.tensor([row["side"] for row in batch]),
            "score": torch.tensor([row["score"] for row in batch]),
        }

    trainer = Regression(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    record: dict[str, Any] = {"max_tokens": settings.max_tokens, "sides": sorted({e.request.side for e in train})}
    (out / RECORD).write_text(json.dumps(record), encoding="utf-8")
    report = _report(
        train, held_out, RewardModelJudge(DistilledJudge(name="distilled", path=str(out), batch=32), settings.device)
    )
    record |= {"settings": settings.model_dump(), "report": {side: entry.as_dict() for side, entry in report.items()}}
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return report


def _make_arguments(settings: Distillation, out: Path, rows: int) -> TrainingArguments:
    """Return the arguments of transformers' trainer: a linear schedule with 10% of warm-up, no checkpoints, no logs."""
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch,
        warmup_steps=math.ceil(0.1 * settings.epochs * rows / settings.batch),
        lr_scheduler_type="linear",
        seed=settings.seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=False,
    )


def divide(entries: Sequence[Entry], fraction: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Divide verdicts into training and held-out verdicts. Verdicts without a score are left out.

    A prompt is in only one of the two. So is a response that was judged on both sides: a model that has learned the
    response under its system prompt would recognise it under its user's message. Prompts that share such responses are
    held out together if enough is left to learn from. Otherwise the verdicts on held-out responses are removed from
    training.

    Raises:
        UserError: there are too few prompts to hold any out.
    """
    scored = [entry for entry in entries if entry.score is not None]
    prompts = sorted({entry.request.prompt for entry in scored})
    if len(prompts) < FEWEST_PROMPTS:
        raise UserError(
            f"the cache holds verdicts on {len(prompts)} prompts; a reward model needs at least {FEWEST_PROMPTS} (and "
            "hundreds to be useful): judge more prompts first"
        )
    wanted = max(2, round(fraction * len(prompts)))
    groups = _join_prompts(scored, prompts)
    if max(map(len, groups)) > max(1, len(prompts) - wanted) // 2:
        groups = [[prompt] for prompt in prompts]
    random.Random(seed).shuffle(groups)
    held: set[str] = set()
    for group in groups:
        if len(held) < wanted:
            held.update(group)
    held_out = [entry for entry in scored if entry.request.prompt in held]
    seen = {(_other(entry.request.side), entry.request.response) for entry in held_out}
    train = [
        entry
        for entry in scored
        if entry.request.prompt not in held and (entry.request.side, entry.request.response) not in seen
    ]
    if not train:
        raise UserError(
            "every response in the cache also belongs to a held-out prompt, so nothing is left to learn from; judge "
            "more prompts first, or lower held_out"
        )
    return train, held_out


def _other(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def _join_prompts(entries: Sequence[Entry], prompts: list[str]) -> list[list[str]]:
    """Group the prompts: a system prompt and a user's message belong together if one response was judged for both."""
    sides: dict[str, dict[str, set[str]]] = {}
    for entry in entries:
        sides.setdefault(entry.request.response, {}).setdefault(entry.request.side, set()).add(entry.request.prompt)
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    together = [sorted(set().union(*by_side.values())) for by_side in sides.values() if len(by_side) == len(SIDES)]
    links = [(numbers[joined[0]], numbers[prompt]) for joined in together for prompt in joined]
    rows, columns = zip(*links, strict=True) if links else ((), ())
    graph = coo_matrix(([1] * len(links), (rows, columns)), shape=(len(prompts), len(prompts)))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[str]] = {}
    for prompt, label in zip(prompts, labels, strict=True):
        groups.setdefault(int(label), []).append(prompt)
    return list(groups.values())


def _report(train: list[Entry], held_out: list[Entry], judge: RewardModelJudge) -> dict[str, SideReport]:
    report = {}
    for side in SIDES:
        ours = [entry for entry in held_out if entry.request.side == side]
        theirs = [entry.score for entry in ours if entry.score is not None]
        seen = [entry.score for entry in train if entry.request.side == side and entry.score is not None]
        if not ours or not seen:
            continue
        scores = [verdict.score for verdict in judge.score([entry.request for entry in ours])]
        known = [score for score in scores if score is not None]
        mean = sum(seen) / len(seen)
        report[side] = SideReport(
            train=len(seen),
            held_out=len(ours),
            mae_of_mean=sum(abs(score - mean) for score in theirs) / len(theirs),
            agreement=agreement(theirs, known, [entry.request.prompt for entry in ours]),
        )
    return report


def _load(base: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """Load the tokenizer and the network of `base`, with a fresh head of two outputs."""
    path = checkpoint_path(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(SIDES), dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"base={base} cannot be loaded: {first_line(error)}") from error
    return tokenizer, model
