"""Scores one sequence per row, padded to the longest. Tests compare the packed engine with it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from agentrl.scoring.head import language_model, score_places, scores_by_sequence
from agentrl.scoring.pieces import cut
from agentrl.scoring.rotary import longest_short, own_frequencies
from agentrl.scoring.sequence import Scores, Sequence


class PaddedEngine:
    """Scores every sequence in full. The cost is the number of sequences times the length of the longest."""

    def cost(self, sequences: Many[Sequence]) -> int:
        return len(sequences) * max((len(one.ids) for one in sequences), default=0)

    def cut(self, groups: Many[Many[Sequence]], budget: int) -> list[range]:
        def piece() -> Callable[[Many[Sequence]], int]:
            taken: list[Sequence] = []

            def take(group: Many[Sequence]) -> int:
                taken.extend(group)
                return self.cost(taken)

            return take

        return cut(groups, budget, piece)

    def score(self, model: Any, sequences: Many[Sequence], router: bool = False) -> Scores:
        device = language_model(model).device
        rows = [torch.tensor(one.ids) for one in sequences]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        width = ids.shape[1]
        scored = [torch.as_tensor(one.scored, dtype=torch.long) for one in sequences]
        sizes = [len(places) for places in scored]
        before = torch.cat([places - 1 + row * width for row, places in enumerate(scored)])
        targets = torch.cat([row[places] for row, places in zip(rows, scored, strict=True)])
        extra = {"output_router_logits": True} if router else {}
        long = mask.sum(1, keepdim=True) > longest_short(language_model(model))
        with own_frequencies(model, long):
            output = score_places(
                model,
                before.to(device),
                targets.to(device),
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                **extra,
            )
        return scores_by_sequence(output, sizes, router=router)
