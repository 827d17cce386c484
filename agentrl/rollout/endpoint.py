"""Episodes played by a model behind an OpenAI-compatible chat-completions endpoint, for evaluation only.

The server renders the conversation and samples; it reports how many tokens there were, not which. An episode that the
server does not play to its end says why, and the others go on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentrl.chat.reading import read_turn
from agentrl.config.algos import Endpoint
from agentrl.config.schema import Config, Rollout
from agentrl.core.engine import Decoding, Episode
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.endpoint.answer import Answer
from agentrl.endpoint.client import ChatClient, Unanswered
from agentrl.endpoint.messages import Dialogue
from agentrl.rollout.guard import ToolsDied, broken_tools
from agentrl.rollout.loop import Messages, Rules, answered_calls, go_on, play_episode

BYTES_A_TOKEN = 4  # where a server does not count


class EndpointEngine:
    """Plays up to `concurrency` episodes at once; implements `RolloutEngine` without token ids."""

    def __init__(self, config: Config) -> None:
        self._endpoint: Endpoint = config.algo.endpoint
        self._rollout, self._bench = config.rollout, config.bench.name
        self._rules = Rules(config.rollout.max_turns, config.faults.dead_tools)
        thinking = None if config.model.thinking is None else config.model.thinking == "on"
        self._client = ChatClient(self._endpoint, config.model.path, thinking)

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """One trajectory per episode, in order; `failure` is set where the endpoint refuses or stays away."""
        settings = decoding or Decoding(self._rollout.temperature, self._rollout.top_p)
        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint") as pool:
            futures = [pool.submit(self._play, episode, settings) for episode in episodes]
            try:
                return [future.result() for future in futures]
            except ToolsDied as death:
                pool.shutdown(wait=False, cancel_futures=True)
                raise broken_tools(self._bench, death) from death
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def ask(self, messages: list[dict[str, str]]) -> str:
        """One greedy reply without tools, as text. Raises Unanswered."""
        budget = self._rollout.max_turn_tokens or self._rollout.max_completion_tokens
        return self._client.complete(list(messages), [], budget, Decoding(0.0)).content

    def sampling(self, decoding: Decoding) -> dict[str, Any] | None:
        """See `ChatClient.sampling`."""
        return self._client.sampling(decoding)

    def _play(self, episode: Episode, decoding: Decoding) -> Trajectory:
        player = ChatPlayer(episode, self._rollout, self._endpoint.history)
        play = play_episode(episode, player, self._rules)
        asked = go_on(play)
        while asked is not None:
            asked = go_on(play, self._answer(asked, decoding))
        return player.trajectory()

    def _answer(self, asked: Asked, decoding: Decoding) -> Answer | Unanswered:
        try:
            return self._client.complete(asked.messages, asked.tools, asked.budget, decoding)
        except Unanswered as unanswered:
            return unanswered


@dataclass(frozen=True)
class Asked:
    """One turn to ask for."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    budget: int  # tokens of the answer at most


class ChatPlayer:
    """The record of one episode, message by message. The budget covers observations, as where tokens are known.

    Only the next answer tells how many tokens an observation had: an answer that then turns out too long is asked
    for again with what is left.
    """

    def __init__(self, episode: Episode, limits: Rollout, history: str) -> None:
        self.calls: list[ToolCall] = []
        self.spent = False
        self._task, self._limits = episode.task, limits
        read = partial(read_turn, environment=episode.environment, tools=bool(episode.task.tools))
        self._dialogue, self._count = Dialogue(history, read), TokenCount()
        self._room = limits.max_completion_tokens  # tokens left for a turn
        self._budget = 0
        self._again = self._over = self._cut = False
        self._failure: str | None = None

    def request(self) -> Asked | None:
        """The dialogue so far; None where the budget is used up or the endpoint failed."""
        if not self._over and not self._again:
            self._room = self._limits.max_completion_tokens - self._count.used
        if self._over or self._room < 1:
            return None
        self._budget = min(self._limits.max_turn_tokens or self._room, self._room)
        return Asked([*self._task.prompt, *self._dialogue.sent], self._task.tools, self._budget)

    def take(self, said: Answer | Unanswered) -> dict[str, Any] | None:
        """Record an answer, unless the observations before it left less room than it takes."""
        if isinstance(said, Unanswered):
            self._failure, self._over = str(said), True
            return None
        left = self._room
        if not self._again:
            self._room = self._limits.max_completion_tokens - self._count.before(said)
            self._over = self._room < 1
            self._again = self._room < min(self._budget, count_tokens(said))
            if self._over or self._again:
                return None
        self._again = False
        message = self._dialogue.add_answer(said)
        self._count.add(said)
        self._cut = said.finish == "length"  # a call that can be read in a cut turn is made all the same
        self.spent = self._cut and self._budget == left
        return message

    def hear(self, said: Messages, over: bool) -> None:
        """Record what the environment said."""
        self._dialogue.add_observations(said)
        self._count.hear(said)

    def trajectory(self) -> Trajectory:
        """The episode as it was played, without token ids; `failure` says why it was not played to its end."""
        if self._room < 0:  # as in process: what the environment said last was too long, the policy never sees it
            self._dialogue.remove_observations()
        messages = self._dialogue.said
        return Trajectory(
            task_id=self._task.id,
            prompt_ids=[],
            completion_ids=[],
            policy_mask=[],
            turn=[],
            component=[],
            messages=messages,
            calls=answered_calls(self.calls, messages),
            truncated=self._cut or self._room < 1,
            reported_tokens=self._count.sampled,
            failure=self._failure,
        )


class TokenCount:
    """Tokens of one episode as the server counts them; at four bytes a token where it does not."""

    def __init__(self) -> None:
        self.sampled, self.used = 0, 0  # by the model; since the prompt ended, observations included
        self._prompt: int | None = None

    def before(self, answer: Answer) -> int:
        """Tokens between the prompt and a new answer."""
        prompt = answer.usage.get("prompt_tokens")
        if prompt is None:
            return self.used
        if self._prompt is None:
            self._prompt = prompt - self.used
        return max(prompt - self._prompt, self.used)

    def add(self, answer: Answer) -> None:
        """Take another turn."""
        self.used = self.before(answer) + count_tokens(answer)
        self.sampled += count_tokens(answer)

    def hear(self, said: list[dict[str, Any]]) -> None:
        """Take what the environment says; a server that counts does so when it answers."""
        if self._prompt is None:
            self.used += sum(tokens_of(message["content"]) for message in said)


def count_tokens(answer: Answer) -> int:
    """Tokens of an answer."""
    text = answer.content + answer.reasoning + "".join(f"{name}{arguments}" for name, arguments in answer.calls)
    return answer.usage.get("completion_tokens", tokens_of(text))


def tokens_of(text: str) -> int:
    return len(text.encode()) // BYTES_A_TOKEN + 1
