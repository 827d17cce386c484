"""Draws tokens from logits. The token of a row depends only on the logits and the random numbers of that row."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from agentrl.core.engine import Decoding
from agentrl.objectives.sampling import keep_top_p

SEEDS = 2**62
BLOCK = 128  # tokens whose probabilities are summed before a row is searched for the drawn token


class Draw:
    """Draws tokens under `decoding`. Each turn of each episode has its own stream of random numbers.

    One draw from torch's generator seeds all streams. So torch's seed decides every token, and the order in which rows
    are served changes nothing.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._temperature, self._top_p = decoding.temperature, decoding.top_p
        self.greedy = decoding.temperature == 0
        self._seed = 0 if self.greedy else int(torch.randint(SEEDS, ()).item())

    def stream(self, episode: int, turn: int) -> Random:
        """Return the stream of random numbers of a turn."""
        return Random(f"{self._seed}/{episode}/{turn}")

    def tokens(self, logits: Tensor, streams: Sequence[Random]) -> tuple[list[int], list[float] | None]:
        """Draw a token for each row of the logits (B, V). Return the tokens (B,) and their log-probs (B,).

        The log-probs are those of the distribution after temperature and top-p; greedy decoding returns None instead.
        A row takes the first token whose cumulative probability exceeds its random number.

        Raises:
            RuntimeError: a logit is NaN, so the row has no distribution.
        """
        if self.greedy:
            return logits.argmax(-1).tolist(), None
        scores = logits.float()
        if self._temperature != 1:
            scores = scores / self._temperature
        probs = scores.softmax(-1)
        if self._top_p < 1:
            probs = keep_top_p(probs, self._top_p)
            probs = probs / probs.sum(-1, keepdim=True)
        numbers = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=logits.device)
        tokens = invert(probs, numbers)
        drawn = torch.cat([tokens.double(), probs.gather(-1, tokens).double().log()], dim=-1).tolist()
        if any(logprob != logprob for _, logprob in drawn):
            raise RuntimeError("the model's probabilities hold NaN, so no token can be sampled")
        return [int(token) for token, _ in drawn], [logprob for _, logprob in drawn]


def invert(probs: Tensor, numbers: Tensor) -> Tensor:
    """Return the first token of each row of probs (B, V) up to which they sum to more than numbers (B, 1), in [0, 1).

    Sums are taken in float64: first over blocks of tokens, then inside the block that holds the token. A row is
    measured against its own sum. A token of probability 0 is never returned. Shape (B, 1).
    """
    rows, size = probs.shape
    blocks = torch.nn.functional.pad(probs, (0, -size % BLOCK)) if size % BLOCK else probs
    blocks = blocks.view(rows, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)
    block, rest = _find(sums, numbers * sums.sum(-1, keepdim=True))
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].double()
    return (block * BLOCK + _find(inside, rest)[0]).clamp(max=size - 1)


def _find(sums: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first place of sums (B, n) at which their running total exceeds number (B, 1).

    Return the place and the rest of the number: number minus the running total before the place, both (B, 1). Rounding
    may have taken the number out of [0, total); then it is put back first.
    """
    cumulative = sums.cumsum(-1)
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(number))
    number = torch.minimum(number.clamp(min=0), below)
    place = torch.searchsorted(cumulative, number, right=True).clamp(max=sums.shape[-1] - 1)
    return place, number - (cumulative.gather(-1, place) - sums.gather(-1, place))
