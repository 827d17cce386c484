"""The one loop over turns: the policy speaks, the environment reads it and answers, until nobody has anything to say.

`play_episode` is a coroutine that knows nothing of models. It yields what the policy is asked and is sent what the
policy says; a `Player` keeps what was said, as tokens (`tokens.py`) or as chat messages (`endpoint.py`). Whoever
drives it decides which episodes are asked together.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.pool import ThreadPool
from typing import Any, Protocol, TypeVar

from agentrl.core.bench import Conversation, Environment, has_independent_calls, has_slow_tools
from agentrl.core.engine import Episode
from agentrl.core.text import replace_surrogates
from agentrl.core.trajectory import ToolCall
from agentrl.rollout.guard import call_tool

CALLS_AT_ONCE = 16  # independent calls of one turn, in all episodes together

Messages = list[dict[str, Any]]
Asked = TypeVar("Asked")
Said = TypeVar("Said")
Asked_co = TypeVar("Asked_co", covariant=True)
Said_contra = TypeVar("Said_contra", contravariant=True)


@dataclass(frozen=True)
class Rules:
    """What holds for every episode of a run."""

    max_turns: int  # assistant turns at most; the last can only answer
    dead_tools: str  # faults.dead_tools: what happens where an environment breaks


class Player(Protocol[Asked_co, Said_contra]):
    """The record of one episode, on the policy's side."""

    calls: list[ToolCall]  # executed, in order; their `turn` is not yet set

    def request(self) -> Asked_co | None:
        """What the policy is asked next; None where it can say no more."""
        ...

    def take(self, said: Said_contra) -> dict[str, Any] | None:
        """Record a turn and return its message; None where there is none, and `request` says how to go on."""
        ...

    @property
    def spent(self) -> bool:
        """Whether the last turn was cut because it took all that was left: then nothing can follow."""
        ...

    def hear(self, said: Messages, over: bool) -> None:
        """Record what the environment said; `over`: the episode ends with it."""
        ...


@dataclass(frozen=True)
class Reaction:
    """What a slow environment is to do next. Whoever drives the episode runs it, and sends back what it returned."""

    run: Callable[[], tuple[Messages, bool]]


def play_episode(episode: Episode, player: Player[Asked, Said], rules: Rules) -> Generator[Asked | Reaction, Any]:
    """Play one episode from its first assistant turn to its end. Raises ToolsDied, see `call_tool`."""
    for turn in range(rules.max_turns):
        message = None
        while message is None:
            request = player.request()
            if request is None:
                return
            message = player.take((yield request))
        if turn == rules.max_turns - 1 or player.spent:
            return
        answer = partial(react, episode.environment, message, player.calls, rules.dead_tools)
        said, over = (yield Reaction(answer)) if has_slow_tools(episode.environment) else answer()
        if said:
            player.hear(said, over)
        if over or not said:
            return


def advance(play: Generator[Asked | Reaction, Any], said: Any = None) -> Asked | Reaction | None:
    """What an episode wants after it was sent `said`, which is None at its beginning; None where it is over."""
    try:
        return play.send(said)
    except StopIteration:
        return None


def go_on(play: Generator[Asked | Reaction, Any], said: Any = None) -> Asked | None:
    """What the policy is asked next, after it said something; None where the episode is over.

    A slow environment is waited for.
    """
    wanted = advance(play, said)
    while isinstance(wanted, Reaction):
        wanted = advance(play, wanted.run())
    return wanted


def react(
    environment: Environment, turn: dict[str, Any], calls: list[ToolCall], dead_tools: str
) -> tuple[Messages, bool]:
    """What the environment says to an assistant turn, and whether the episode ends with it.

    Every call is executed and added to `calls`, in the order of the turn; without calls it is the user's turn to speak,
    if there is one.
    """
    if turn.get("tool_calls"):
        made = [(one["function"]["name"], one["function"]["arguments"]) for one in turn["tool_calls"]]
        answers = _call_tools(environment, made, dead_tools)
        calls += answers
        said = [
            {"role": "tool", "name": str(name), "content": answer.observation}
            for (name, _), answer in zip(made, answers, strict=True)
        ]
        return said, isinstance(environment, Conversation) and not environment.continue_episode()
    text = environment.next_message() if isinstance(environment, Conversation) else None
    return ([], True) if text is None else ([{"role": "user", "content": replace_surrogates(text)}], False)


def _call_tools(environment: Environment, made: list[tuple[Any, Any]], dead_tools: str) -> list[ToolCall]:
    if len(made) == 1 or not has_independent_calls(environment):
        return [call_tool(environment, name, arguments, dead_tools) for name, arguments in made]
    return _callers().starmap(lambda name, arguments: call_tool(environment, name, arguments, dead_tools), made, 1)


@cache
def _callers() -> ThreadPool:
    threads = ThreadPool(CALLS_AT_ONCE)
    atexit.register(threads.terminate)  # which waits for no call
    return threads


def answered_calls(calls: list[ToolCall], messages: Messages) -> list[ToolCall]:
    """The executed calls whose results stand in `messages`, each with the index of the assistant message that made it.

    A tool runs before its result is found to exceed the budget; the policy never saw such a result. The calls of one
    message are executed before the next turn is sampled, so order alone decides.
    """
    answered = sum(message["role"] == "tool" for message in messages)
    turned: list[ToolCall] = []
    for turn, message in enumerate(m for m in messages if m["role"] == "assistant"):
        for _ in message.get("tool_calls") or []:
            if len(turned) < min(answered, len(calls)):
                call = calls[len(turned)]
                turned.append(ToolCall(turn, call.name, call.arguments, call.observation, call.error))
    return turned
