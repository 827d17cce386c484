"""The multi-turn loop: the policy writes a turn, the environment answers, until one of them ends the episode.

`play_episode` is a coroutine that does not depend on a model. It yields a request for a turn, and its caller sends the
sampled turn back. A `Player` records the episode, as tokens (`tokens.py`) or as chat messages (`endpoint.py`). The
caller decides which episodes are sampled together.
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

CALLS_AT_ONCE = 16  # number of threads, shared by all episodes, that run the independent calls of one turn

Messages = list[dict[str, Any]]
Asked = TypeVar("Asked")
Said = TypeVar("Said")
Asked_co = TypeVar("Asked_co", covariant=True)
Said_contra = TypeVar("Said_contra", contravariant=True)


@dataclass(frozen=True)
class Rules:
    """Settings for every episode of a run."""

    max_turns: int  # maximum number of assistant turns; calls of the last turn are not executed
    dead_tools: str  # faults.dead_tools: what happens if an environment breaks


class Player(Protocol[Asked_co, Said_contra]):
    """Makes the requests of one episode and records its turns and observations."""

    calls: list[ToolCall]  # the executed calls, in order; their `turn` is not set yet

    def request(self) -> Asked_co | None:
        """Return the request for the next turn, or None if no turn can follow."""
        ...

    def take(self, said: Said_contra) -> dict[str, Any] | None:
        """Record a turn and return its message. If it returns None, the loop asks `request` again."""
        ...

    @property
    def out_of_budget(self) -> bool:
        """Whether the last turn was cut because it used up the budget. Then nothing can follow."""
        ...

    def record_observation(self, said: Messages, over: bool) -> None:
        """Record the environment's messages. `over`: the episode ends with them."""
        ...


@dataclass(frozen=True)
class Reaction:
    """The next step of a slow environment. The caller of the episode runs it and sends the result back."""

    run: Callable[[], tuple[Messages, bool]]


def play_episode(episode: Episode, player: Player[Asked, Said], rules: Rules) -> Generator[Asked | Reaction, Any]:
    """Play one episode from its first assistant turn to its end.

    Raises ToolsDied if the environment breaks and dead_tools is stop.
    """
    for turn in range(rules.max_turns):
        message = None
        while message is None:
            request = player.request()
            if request is None:
                return
            message = player.take((yield request))
        if turn == rules.max_turns - 1 or player.out_of_budget:
            return
        answer = partial(react, episode.environment, message, player.calls, rules.dead_tools)
        said, over = (yield Reaction(answer)) if has_slow_tools(episode.environment) else answer()
        if said:
            player.record_observation(said, over)
        if over or not said:
            return


def advance(play: Generator[Asked | Reaction, Any], said: Any = None) -> Asked | Reaction | None:
    """Send `said` to an episode, None to start it. Return the next thing it yields, or None if the episode is over."""
    try:
        return play.send(said)
    except StopIteration:
        return None


def next_request(play: Generator[Asked | Reaction, Any], said: Any = None) -> Asked | None:
    """Send the policy's turn `said` to an episode. Return the next request, or None if the episode is over.

    It blocks while a slow environment runs.
    """
    wanted = advance(play, said)
    while isinstance(wanted, Reaction):
        wanted = advance(play, wanted.run())
    return wanted


def react(
    environment: Environment, turn: dict[str, Any], calls: list[ToolCall], dead_tools: str
) -> tuple[Messages, bool]:
    """Let the environment answer an assistant turn. Return its messages, and whether the episode ends with them.

    The calls of the turn are executed and appended to `calls`, in order. If the turn has no calls, the simulated user
    answers; without one, or if the user is done, there is no message and the episode ends.
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
    atexit.register(threads.terminate)  # does not wait for calls that are still running
    return threads


def answered_calls(calls: list[ToolCall], messages: Messages) -> list[ToolCall]:
    """Return the executed calls whose results are in `messages`, each with the index of its assistant message.

    A call is left out if its result exceeded the budget: it was executed, but the policy never saw the result. Calls
    are matched to messages by order, since the calls of one message are executed before the next turn is sampled.
    """
    answered = sum(message["role"] == "tool" for message in messages)
    turned: list[ToolCall] = []
    for turn, message in enumerate(m for m in messages if m["role"] == "assistant"):
        for _ in message.get("tool_calls") or []:
            if len(turned) < min(answered, len(calls)):
                call = calls[len(turned)]
                turned.append(ToolCall(turn, call.name, call.arguments, call.observation, call.error))
    return turned
