"""Plays episodes with a model behind an OpenAI-compatible chat-completions endpoint, for evaluation only.

The server renders the conversation and samples. It reports the number of tokens, not their ids. If the server fails in
one episode, the trajectory of that episode records the reason, and the other episodes continue.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentrl.chat.reading import read_turn
from agentrl.config.algos.evaluate import Endpoint
from agentrl.config.schema import Config, Rollout
from agentrl.core.engine import Decoding, Episode
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.endpoint.answer import Answer
from agentrl.endpoint.client import ChatClient, Unanswered
from agentrl.endpoint.messages import Dialogue
from agentrl.rollout.guard import ToolsDied, broken_tools
from agentrl.rollout.loop import Messages, Rules, answered_calls, next_request, play_episode

BYTES_A_TOKEN = 4  # an estimate, used if the server does not report token counts


class EndpointEngine:
    """Plays up to `concurrency` episodes at once; implements `RolloutEngine` without token ids."""

    def __init__(self, config: Config) -> None:
        self._endpoint: Endpoint = config.algo.endpoint
        self._rollout, self._bench = config.rollout, config.bench.name
        self._rules = Rules(config.rollout.max_turns, config.faults.dead_tools)
        thinking = None if config.model.thinking is None else config.model.thinking == "on"
        self._client = ChatClient(self._endpoint, config.model.path, thinking)

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """Play the episodes and return one trajectory per episode, in order.

        `failure` of a trajectory is set if the endpoint refused a request or did not answer. Raises UserError if tools
        die and `faults.dead_tools` is stop.
        """
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
        """Return one greedy reply as text, without tools. Raises Unanswered if the endpoint gives none."""
        budget = self._rollout.max_turn_tokens or self._rollout.max_completion_tokens
        return self._client.complete(list(messages), [], budget, Decoding(0.0)).content

    def sampling(self, decoding: Decoding) -> dict[str, Any] | None:
        """See `ChatClient.sampling`."""
        return self._client.sampling(decoding)

    def _play(self, episode: Episode, decoding: Decoding) -> Trajectory:
        player = ChatPlayer(episode, self._rollout, self._endpoint.history)
        play = play_episode(episode, player, self._rules)
        asked = next_request(play)
        while asked is not None:
            asked = next_request(play, self._answer(asked, decoding))
        return player.trajectory()

    def _answer(self, asked: Asked, decoding: Decoding) -> Answer | Unanswered:
        try:
            return self._client.complete(asked.messages, asked.tools, asked.budget, decoding)
        except Unanswered as unanswered:
            return unanswered


@dataclass(frozen=True)
class Asked:
    """One turn to request from the endpoint."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    budget: int  # maximum number of tokens of the answer


class ChatPlayer:
    """Records one episode, message by message. The token budget covers turns and observations, as in `TokenPlayer`.

    The server tells the number of tokens of an observation only with its next answer. If that answer then turns out to
    exceed the budget, it is requested again with the tokens that are left.
    """

    def __init__(self, episode: Episode, limits: Rollout, history: str) -> None:
        self.calls: list[ToolCall] = []
        self.out_of_budget = False
        self._task, self._limits = episode.task, limits
        read = partial(read_turn, environment=episode.environment, tools=bool(episode.task.tools))
        self._dialogue, self._count = Dialogue(history, read), TokenCount()
        self._room = limits.max_completion_tokens  # tokens that are left for the next turn
        self._budget = 0
        self._again = self._over = self._cut = False
        self._failure: str | None = None

    def request(self) -> Asked | None:
        """Return the dialogue so far as a request. Return None if the budget is used up or the endpoint failed."""
        if not self._over and not self._again:
            self._room = self._limits.max_completion_tokens - self._count.used
        if self._over or self._room < 1:
            return None
        self._budget = min(self._limits.max_turn_tokens or self._room, self._room)
        return Asked([*self._task.prompt, *self._dialogue.sent], self._task.tools, self._budget)

    def take(self, said: Answer | Unanswered) -> dict[str, Any] | None:
        """Record an answer and return its message.

        Return None, and record nothing, if the endpoint failed or if the observations left too few tokens for it.
        """
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
        self._cut = said.finish == "length"  # a complete call in a cut turn is still executed
        self.out_of_budget = self._cut and self._budget == left
        return message

    def record_observation(self, said: Messages, over: bool) -> None:
        """Record the environment's messages."""
        self._dialogue.add_observations(said)
        self._count.add_observations(said)

    def trajectory(self) -> Trajectory:
        """Return the episode without token ids. `failure` holds the reason if the endpoint broke it off."""
        if self._room < 0:  # the last observation exceeds the budget, so the policy never sees it, as in `TokenPlayer`
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
    """Counts the tokens of one episode from the server's reports, or estimates BYTES_A_TOKEN bytes a token."""

    def __init__(self) -> None:
        # sampled: tokens that the model wrote. used: all tokens since the end of the prompt, including observations.
        self.sampled, self.used = 0, 0
        self._prompt: int | None = None

    def before(self, answer: Answer) -> int:
        """Return the number of tokens between the prompt and a new answer."""
        prompt = answer.usage.get("prompt_tokens")
        if prompt is None:
            return self.used
        if self._prompt is None:
            self._prompt = prompt - self.used
        return max(prompt - self._prompt, self.used)

    def add(self, answer: Answer) -> None:
        """Count a turn of the model."""
        self.used = self.before(answer) + count_tokens(answer)
        self.sampled += count_tokens(answer)

    def add_observations(self, said: list[dict[str, Any]]) -> None:
        """Count the environment's messages by an estimate, unless the server reports counts: its next one has them."""
        if self._prompt is None:
            self.used += sum(tokens_of(message["content"]) for message in said)


def count_tokens(answer: Answer) -> int:
    """Return the number of tokens of an answer, estimated if the server reports none."""
    text = answer.content + answer.reasoning + "".join(f"{name}{arguments}" for name, arguments in answer.calls)
    return answer.usage.get("completion_tokens", tokens_of(text))


def tokens_of(text: str) -> int:
    return len(text.encode()) // BYTES_A_TOKEN + 1
