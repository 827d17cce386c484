"""The interface between the rollout loop and a model. A request holds token ids; the answer is one turn of token ids.

The rollout loop opens a session of the sampler for each batch of episodes and sends one request per turn. The session
may answer requests one by one or all together. It may keep a cache of each episode's context until the batch is over.
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
    LIMIT = "limit"  # it reached the limit of its request
    CONTEXT = "context"  # the model's context was full


@dataclass(frozen=True)
class Request:
    """One turn to sample."""

    episode: int  # number of the episode in the batch, the same for all its turns
    ids: list[int]  # (L,) the whole context that the policy sees
    limit: int  # maximum number of tokens of the turn; with 0 the turn is empty


@dataclass(frozen=True)
class Turn:
    """One sampled turn of T tokens, including the end token."""

    ids: list[int]  # (T,), T <= limit
    logprobs: list[float] | None  # (T,), under the distribution that was sampled; None if the sampler gives none
    stop: Stop


def always_false() -> bool:
    """Return False: the default for `ready` and `given_up`, for a caller that waits for nothing but turns."""
    return False


class Session(Protocol):
    """Samples the turns of one batch of episodes."""

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        """Accept new requests, wait until a turn has ended, and return all turns that have ended, by episode.

        `requests` may be empty while turns are in flight. A session that can be interrupted returns early, possibly
        with no turn, once `ready()` returns True, for example because the caller has more requests.
        """
        ...


class Sampler(Protocol):
    """Samples turns of the current policy."""

    ends: Sequence[int]  # ids of the tokens that end a turn
    context: int  # maximum length of a context in tokens, including the turn to be sampled

    def session(self, decoding: Decoding | None) -> AbstractContextManager[Session]:
        """Open a session for one batch of episodes. `decoding` None means the settings of training."""
        ...


def cut_turn(request: Request, ids: list[int], logprobs: list[float] | None, ends: Sequence[int], context: int) -> Turn:
    """Make a turn of the tokens that were sampled for `request`. Cut it at the limit and set the reason for its end."""
    ids = ids[: request.limit]
    stop = Stop.LIMIT
    if ids and ids[-1] in ends:
        stop = Stop.END
    elif len(request.ids) + len(ids) >= context:
        stop = Stop.CONTEXT
    return Turn(ids, None if logprobs is None else logprobs[: len(ids)], stop)
