"""Episodes played by a model behind an OpenAI-compatible chat-completions endpoint, for evaluation only.

The server renders the conversation and samples; it reports how many tokens there were, not which. An episode that the
server does not play to its end says why, and the others go on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from agentrl.chat.reading import read_turn
from agentrl.config.algos import Endpoint
from agentrl.config.schema import Config
from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.endpoint.answer import Answer
from agentrl.endpoint.client import ChatClient, Unanswered
from agentrl.endpoint.messages import Dialogue
from agentrl.rollout.conversation import react
from agentrl.rollout.guard import ToolsDied
from agentrl.rollout.trl_loop import turns_of_calls

BYTES_A_TOKEN = 4  # where a server does not count


class EndpointEngine:
    """Plays up to `concurrency` episodes at once; implements `RolloutEngine` without token ids."""

    def __init__(self, config: Config) -> None:
        self._endpoint: Endpoint = config.algo.endpoint
        self._rollout, self._dead_tools, self._bench = config.rollout, config.faults.dead_tools, config.bench.name
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
                raise UserError(
                    f"the tools of bench={self._bench} broke ({death}); mend them and give the same command, or let "
                    "faults.dead_tools=continue count such calls as errors"
                ) from death
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
        """Turns as the token loop takes them: the last one allowed can only answer, the budget covers observations."""
        limits, task = self._rollout, episode.task
        read = partial(read_turn, environment=episode.environment, tools=bool(task.tools))
        dialogue = Dialogue(self._endpoint.history, read)
        calls: list[ToolCall] = []
        count = TokenCount()
        truncated, failure = False, None
        room = 1  # tokens left for a turn
        for turn in range(limits.max_turns):
            left = room = limits.max_completion_tokens - count.used
            if left < 1:
                break
            budget = min(limits.max_turn_tokens or left, left)
            context = [*task.prompt, *dialogue.sent]
            try:
                answer = self._client.complete(context, task.tools, budget, decoding)
                room = limits.max_completion_tokens - count.before(answer)  # only now are observations counted
                if 0 < room < min(budget, written(answer)):
                    budget = left = room
                    answer = self._client.complete(context, task.tools, budget, decoding)
            except Unanswered as unanswered:
                failure = str(unanswered)
                break
            if room < 1:
                break
            message = dialogue.answered(answer)
            count.add(answer)
            truncated = answer.finish == "length"  # a call that can be read in a cut turn is made all the same
            if turn == limits.max_turns - 1 or (truncated and budget == left):
                break
            said, over = react(episode.environment, message, calls, self._dead_tools)
            dialogue.heard(said)
            count.hear(said)
            if over or not said:
                break
        truncated = truncated or room < 1
        if room < 0:  # as in process: what the environment said last was too long, the policy never sees it
            dialogue.unheard()
        answered = sum(message["role"] == "tool" for message in dialogue.said)
        return Trajectory(
            task_id=task.id,
            prompt_ids=[],
            completion_ids=[],
            policy_mask=[],
            turn=[],
            component=[],
            messages=dialogue.said,
            calls=turns_of_calls(calls[:answered], dialogue.said),
            truncated=truncated,
            reported_tokens=count.sampled,
            failure=failure,
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
        self.used = self.before(answer) + written(answer)
        self.sampled += written(answer)

    def hear(self, said: list[dict[str, Any]]) -> None:
        """Take what the environment says; a server that counts does so when it answers."""
        if self._prompt is None:
            self.used += sum(tokens_of(message["content"]) for message in said)


def written(answer: Answer) -> int:
    """Tokens of an answer."""
    text = answer.content + answer.reasoning + "".join(f"{name}{arguments}" for name, arguments in answer.calls)
    return answer.usage.get("completion_tokens", tokens_of(text))


def tokens_of(text: str) -> int:
    return len(text.encode()) // BYTES_A_TOKEN + 1
