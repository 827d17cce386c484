"""A small reward model that replaces a judge: a transformer with one output for each side, fitted to cached verdicts.

`agentrl judge distill` makes one (`agentrl.judges.distill`); `judge=distilled` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from agentrl.config.judges import DistilledJudge
from agentrl.core.errors import UserError, first_line
from agentrl.core.judge import SIDES, JudgeRequest, Verdict

RECORD = "distilled.json"  # settings and report, beside the model


def encode(tokenizer: PreTrainedTokenizerBase, request: JudgeRequest, max_tokens: int) -> list[int]:
    """Return at most `max_tokens` token ids: side, prompt and response, each closed by the end token.

    If they are too many, the end of the prompt is cut first, down to half of the room; then the end of the response.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    # A special token that is written in a judged text is read as ordinary text.
    side, prompt, response = (
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in (request.side, request.prompt, request.response)
    )
    room = max_tokens - len(side) - 3
    prompt = prompt[: max(room // 2, room - len(response))]
    return [*side, end, *prompt, end, *response[: room - len(prompt)], end]


class RewardModelJudge:
    """A judge that gives the model's scores: sigmoids in [0, 1], not snapped. It gives a score to every request."""

    def __init__(self, config: DistilledJudge, device: str):
        self.name = config.path
        self._batch = config.batch
        folder = Path(config.path).expanduser()
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            self._max_tokens, self._sides = int(record["max_tokens"]), list(record["sides"])
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"judge.path={config.path} cannot be loaded ({first_line(error)}); make one with agentrl judge distill"
            ) from error
        self._model = model.to(device).eval()
        self._verdicts = 0

    def score(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """See `Judge.score`."""
        unknown = {request.side for request in requests} - set(self._sides)
        if unknown:
            raise UserError(
                f"judge.path={self.name} learned only from {' and '.join(self._sides)} verdicts; distil one from both "
                "sides"
            )
        scores: list[float] = []
        for start in range(0, len(requests), self._batch):
            batch = requests[start : start + self._batch]
            rows = [encode(self._tokenizer, request, self._max_tokens) for request in batch]
            inputs = pad(rows, self._tokenizer.pad_token_id)
            with torch.no_grad():
                logits = self._model(**{name: tensor.to(self._model.device) for name, tensor in inputs.items()}).logits
            picked = logits.sigmoid().cpu()[range(len(batch)), [SIDES.index(request.side) for request in batch]]
            scores += picked.tolist()
        self._verdicts += len(scores)
        return [Verdict(score, "distilled") for score in scores]

    def counts(self) -> dict[str, float]:
        """See `Judge.counts`. No verdict is missing and none costs anything."""
        return {"verdicts": self._verdicts, "missing": 0}


def pad(rows: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right: `input_ids` and `attention_mask`, each (B, T)."""
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [pad_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
