"""The contract of the floor: token sequences in, log-probs and entropies of their scored tokens out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """Tokens, and the places of those that are scored: ascending, without 0, since nothing predicts the first token."""

    ids: Many[int]
    scored: Many[int]

    def after(self, context: list[int], own: int) -> Sequence:
        """The same sequence with `context` in place of its first `own` tokens, none of which is scored."""
        return Sequence([*context, *self.ids[own:]], [place - own + len(context) for place in self.scored])


@dataclass(frozen=True)
class Scores:
    """What a model says of sequences: one tensor (len(scored),) a sequence, in their order.

    Log-probs and entropies are at the temperature of the model's scoring head, and have a graph where gradients are on.
    """

    logps: list[Tensor]
    # Each of these is empty where the model's head does not compute it.
    entropies: list[Tensor]
    best: list[Tensor] = field(default_factory=list)  # whether no token is likelier
    mean_logits: list[Tensor] = field(default_factory=list)  # over the vocabulary
    router: Tensor | None = None  # the load-balancing loss of a mixture of experts, where it was asked for


class Engine(Protocol):
    """Two ways to the same numbers: `packed.PackedEngine` and `padded.PaddedEngine`."""

    def cost(self, sequences: Many[Sequence]) -> int:
        """Tokens that one forward pass over these sequences computes."""

    def cut(self, groups: Many[Many[Sequence]], budget: int) -> list[range]:
        """Consecutive `groups` of sequences in pieces of at most `budget` tokens each, or of one group."""

    def score(self, model: Any, sequences: Many[Sequence], router: bool = False) -> Scores:
        """Score sequences in one forward pass of `model`; some place must be scored.

        `router` asks for the loss of a mixture of experts.
        """


STAND_IN = Sequence([0, 0], [1])  # scored by a process that has nothing left where others have


def score_in_pieces(
    engine: Engine,
    model: Any,
    sequences: Many[Sequence],
    budget: int,
    agree: Callable[[int], int] = lambda passes: passes,
) -> Scores:
    """Score any number of sequences without a graph, in forward passes of at most `budget` tokens.

    agree: from the passes that this process needs to those that every process runs.
    """
    logps, entropies = [], []
    with torch.no_grad():
        pieces = engine.cut([[one] for one in sequences], budget)
        passes = agree(len(pieces))  # before the first: passes of sharded models wait for each other
        for piece in pieces:
            scores = engine.score(model, sequences[piece.start : piece.stop])
            logps += scores.logps
            entropies += scores.entropies
        for _ in range(passes - len(pieces)):
            engine.score(model, [STAND_IN])
    return Scores(logps, entropies)
