"""Draws tokens from logits. The token of a row depends only on the logits and the random numbers of that row."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from agentrl.core.engine import Decoding

SEEDS = 2**62


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
        transformers applies top-p. A row takes the first token whose cumulative probability exceeds its random number.

        Raises:
            RuntimeError: a logit is NaN, so the row has no distribution.
        """
        if self.greedy:
            return logits.argmax(-1).tolist(), None
        scores = logits.float() / self._temperature
        if self._top_p < 1:
            scores = TopPLogitsWarper(self._top_p)(None, scores)
        logprobs = scores.log_softmax(-1)
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        numbers = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=logits.device)
        tokens = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        drawn = torch.cat([tokens.double(), logprobs.gather(-1, tokens).double()], dim=-1).tolist()
        if any(logprob != logprob for _, logprob in drawn):
            raise RuntimeError("the model's probabilities hold NaN, so no token can be sampled")
        return [int(token) for token, _ in drawn], [logprob for _, logprob in drawn]
