"""What plays episodes asks of a model: token ids in, the token ids of one turn out.

A sampler is opened for a batch of episodes and gets requests, one a turn. It may answer them one by one or all
together, and may keep what it knows of an episode (a cache of its context) until the batch is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agentrl.core.engine import Decoding


class Stop(StrEnum):
    """Why a turn ended."""

    END = "end"  # the policy ended it with an end token
    LIMIT = "limit"  # it took all tokens it was allowed
    CONTEXT = "context"  # the model's context was full


@dataclass(frozen=True)
class Request:
    """One turn to sample."""

    episode: int  # its number in the batch; the next turns of the same episode carry the same
    ids: list[int]  # (L,) all that the policy is shown
    limit: int  # tokens that the turn may have at most; with 0 it comes back empty


@dataclass(frozen=True)
class Turn:
    """One sampled turn of T tokens, the end token included."""

    ids: list[int]  # (T,), T <= limit
    logprobs: list[float] | None  # (T,), under the distribution that was sampled; None where the sampler has none
    stop: Stop


def always_false() -> bool:
    """Nothing else is waited for."""
    return False


class Session(Protocol):
    """A sampler while a batch of episodes is played."""

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        """Take new requests in; returns turns that have ended, by episode, at least one while any is in flight.

        Called with no request while turns are in flight, it waits for the next of them. A session that can be
        interrupted returns early, maybe with nothing, once `ready()` says that more requests are to be had.
        """
        ...


class Sampler(Protocol):
    """Samples turns of the current policy."""

    ends: Sequence[int]  # tokens any of which ends a turn
    context: int  # tokens of the longest context that it takes, the turn to come included

    def session(self, decoding: Decoding | None) -> AbstractContextManager[Session]:
        """Open it for one batch of episodes. `decoding` None means the training setting."""
        ...


def cut_turn(request: Request, ids: list[int], logprobs: list[float] | None, ends: Sequence[int], context: int) -> Turn:
    """A turn from what was sampled for `request`: no longer than its limit, with the reason of its end."""
    ids = ids[: request.limit]
    stop = Stop.LIMIT
    if ids and ids[-1] in ends:
        stop = Stop.END
    elif len(request.ids) + len(ids) >= context:
        stop = Stop.CONTEXT
    return Turn(ids, None if logprobs is None else logprobs[: len(ids)], stop)
