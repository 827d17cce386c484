"""The one loop over turns: the policy speaks, the environment reads it and answers, until nobody has anything to say.

`play_episode` is a coroutine that knows nothing of models. It yields what the policy is asked and is sent what the
policy says; a `Player` keeps what was said, as tokens (`tokens.py`) or as chat messages (`endpoint.py`). Whoever
drives it decides which episodes are asked together.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from agentrl.core.bench import Conversation, Environment
from agentrl.core.engine import Episode
from agentrl.core.text import well_formed
from agentrl.core.trajectory import ToolCall
from agentrl.rollout.guard import call_tool

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


def play_episode(episode: Episode, player: Player[Asked, Said], rules: Rules) -> Generator[Asked, Said]:
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
        said, over = react(episode.environment, message, player.calls, rules.dead_tools)
        if said:
            player.hear(said, over)
        if over or not said:
            return


def begin(play: Generator[Asked, Said]) -> Asked | None:
    """What the policy of an episode is asked first; None where the episode is over."""
    return next(play, None)


def go_on(play: Generator[Asked, Said], said: Said) -> Asked | None:
    """What the policy is asked after it said something; None where the episode is over."""
    try:
        return play.send(said)
    except StopIteration:
        return None


def react(
    environment: Environment, turn: dict[str, Any], calls: list[ToolCall], dead_tools: str
) -> tuple[Messages, bool]:
    """What the environment says to an assistant turn, and whether the episode ends with it.

    Every call is executed and added to `calls`; without calls it is the user's turn to speak, if there is one.
    """
    if turn.get("tool_calls"):
        said = []
        for call in turn["tool_calls"]:
            function = call["function"]
            done = call_tool(environment, function["name"], function["arguments"], dead_tools)
            calls.append(done)
            said.append({"role": "tool", "name": str(function["name"]), "content": done.observation})
        return said, isinstance(environment, Conversation) and not environment.continue_episode()
    text = environment.next_message() if isinstance(environment, Conversation) else None
    return ([], True) if text is None else ([{"role": "user", "content": well_formed(text)}], False)


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
