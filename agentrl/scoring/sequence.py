"""The interface of the scoring engines: token sequences in, log-probs and entropies of their scored tokens out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """Token ids, and the places of the tokens to score.

    The places are ascending. Place 0 is never scored, since nothing predicts the first token.
    """

    ids: Many[int]
    scored: Many[int]

    def after(self, context: list[int], own: int) -> Sequence:
        """Return the sequence with `context` in place of its first `own` tokens, none of which may be scored."""
        return Sequence([*context, *self.ids[own:]], [place - own + len(context) for place in self.scored])


@dataclass(frozen=True)
class Scores:
    """The scores of sequences: in each list, one tensor (len(scored),) per sequence, in their order.

    Log-probs and entropies are at the temperature of the model's scoring head. They have a graph if gradients are on.
    """

    logps: list[Tensor]
    # Each of these is empty where the model's head does not compute it.
    entropies: list[Tensor]
    best: list[Tensor] = field(default_factory=list)  # whether the token is the most probable one
    mean_logits: list[Tensor] = field(default_factory=list)  # the mean of the logits over the vocabulary
    router: Tensor | None = None  # the load-balancing loss of a mixture of experts, if it was requested


class Engine(Protocol):
    """Scores sequences. `packed.PackedEngine` and `padded.PaddedEngine` give the same results up to rounding."""

    def cost(self, sequences: Many[Sequence]) -> int:
        """Return the number of tokens that one forward pass over these sequences computes."""

    def cut(self, groups: Many[Many[Sequence]], budget: int) -> list[range]:
        """Cut consecutive `groups` of sequences into pieces of at most `budget` tokens each, or of one group."""

    def score(self, model: Any, sequences: Many[Sequence], router: bool = False) -> Scores:
        """Score sequences in one forward pass of `model`. At least one place must be scored.

        `router` requests the load-balancing loss of a mixture of experts.
        """


STAND_IN = Sequence([0, 0], [1])  # a process without work scores it while other processes still have passes to run


def score_in_pieces(
    engine: Engine,
    model: Any,
    sequences: Many[Sequence],
    budget: int,
    agree: Callable[[int], int] = lambda passes: passes,
) -> Scores:
    """Score any number of sequences without a graph, in forward passes of at most `budget` tokens.

    agree: maps the number of passes that this process needs to the number that every process runs.
    """
    logps, entropies = [], []
    with torch.no_grad():
        pieces = engine.cut([[one] for one in sequences], budget)
        passes = agree(len(pieces))  # called before the first pass, since passes of a sharded model need all processes
        for piece in pieces:
            scores = engine.score(model, sequences[piece.start : piece.stop])
            logps += scores.logps
            entropies += scores.entropies
        for _ in range(passes - len(pieces)):
            engine.score(model, [STAND_IN])
    return Scores(logps, entropies)
