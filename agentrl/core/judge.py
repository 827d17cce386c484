"""The contract of a judge: requests in, verdicts out, one side of the context at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.core.errors import UserError
from agentrl.core.text import replace_surrogates

SIDES = ("system", "user")  # the side whose instructions a response is graded by; each has its own rubric
CLASSIFIER = "classifier/"  # and the name of a fixed prompt, in place of a side


@dataclass(frozen=True)
class JudgeRequest:
    """One response to judge. There is no field for the other side of the context, so a judge cannot see it."""

    side: str  # "system" or "user"; or the classifier that is asked
    prompt: str  # the system prompt, or what the user asked
    response: str

    def __post_init__(self) -> None:
        if self.side not in SIDES and not self.side.startswith(CLASSIFIER):
            raise ValueError(f"side {self.side!r} is not one of {', '.join(SIDES)}")
        for name in ("prompt", "response"):  # UTF-8 cannot encode lone surrogates: requests and the cache would fail
            object.__setattr__(self, name, replace_surrogates(getattr(self, name)))


@dataclass(frozen=True)
class Verdict:
    """What a judge said. A missing score is not zero: leave the response out of every mean and every group."""

    score: float | None  # in [0, 1], a multiple of 0.05 for rubric judges; None if it is missing
    note: str  # the judge's reply, or why there is no score


class JudgeStopped(UserError):
    """The judge cannot go on: the budget is spent, the endpoint is down or the key was refused.

    The verdicts given so far are in the cache.
    """


class Judge(Protocol):
    """Scores batches of requests."""

    name: str

    def score(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in order. Equal requests are judged once.

        Raises:
            JudgeStopped: the judge cannot go on. Its verdicts are kept, and the same call later judges only the rest.
        """
        ...

    def counts(self) -> dict[str, float]:
        """Return the totals since the start, for logs: verdicts, cached, missing, requests, retries, tokens, cost."""
        ...
