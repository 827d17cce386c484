"""The contract of a judge: requests in, verdicts out, one side of the context at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.core.errors import UserError
from agentrl.core.text import well_formed

SIDES = ("system", "user")  # what a response is held against; each has its own rubric


@dataclass(frozen=True)
class JudgeRequest:
    """One response to judge. There is no field for the other side of the context, so a judge cannot see it."""

    side: str  # "system" or "user"
    prompt: str  # the system prompt, or what the user asked
    response: str

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"side {self.side!r} is not one of {', '.join(SIDES)}")
        for name in ("prompt", "response"):  # lone surrogates have no UTF-8 and would stop the wire and the cache
            object.__setattr__(self, name, well_formed(getattr(self, name)))


@dataclass(frozen=True)
class Verdict:
    """What a judge said. A missing score is no zero: leave the response out of every mean and every group."""

    score: float | None  # in [0, 1], a multiple of 0.05 for rubric judges; None is missing
    note: str  # the judge's reply, or why there is no score


class JudgeStopped(UserError):
    """The judge cannot go on: budget spent, endpoint down, key refused. Verdicts so far are in the cache."""


class Judge(Protocol):
    """Scores batches of requests."""

    name: str

    def score(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict per request, in order; equal requests are judged once.

        Raises:
            JudgeStopped: what was judged until then is kept; the same call later does only the rest.
        """
        ...

    def counts(self) -> dict[str, float]:
        """Totals since the start: verdicts, cached, missing, requests, retries, tokens, cost. For logs."""
        ...
