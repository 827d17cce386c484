"""Plays episodes as tokens: a `Sampler` samples every turn, and the trajectory keeps exactly the ids that it returned.

Tool results and user messages are observations. Their tokens are appended as the chat template writes them, and they
are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import PreTrainedModel

from agentrl.chat.format import ChatFormat
from agentrl.chat.labels import CompletionLabeller
from agentrl.chat.reading import TokenReader
from agentrl.config.schema import Config
from agentrl.core.engine import Decoding, Episode
from agentrl.core.stop import together
from agentrl.core.trajectory import Trajectory
from agentrl.rollout.background import Background
from agentrl.rollout.guard import ToolsDied, broken_tools
from agentrl.rollout.loop import Messages, Reaction, Rules, advance, answered_calls, play_episode
from agentrl.rollout.observations import observation_ids
from agentrl.rollout.playing import GivenUp, Playing
from agentrl.rollout.sampler import Request, Sampler, Session, Stop, Turn, always_false
from agentrl.rollout.transformers_sampler import TransformersSampler


class TokenEngine:
    """Plays episodes with a sampler; implements `RolloutEngine`.

    `progress` is called again and again with the number of episodes that have not ended.
    """

    def __init__(
        self, sampler: Sampler, chat: ChatFormat, config: Config, progress: Callable[[int], None] | None = None
    ) -> None:
        self.sampler = sampler
        self._chat, self._bench, self._progress = chat, config.bench.name, progress
        self._rules = Rules(config.rollout.max_turns, config.faults.dead_tools)
        self._budget = config.rollout.max_completion_tokens
        self._reader = TokenReader(chat.tokenizer)
        self._label = CompletionLabeller(chat.tokenizer, sampler.ends)

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """See `RolloutEngine.rollout`. Raises UserError if tools die and `faults.dead_tools` is stop."""
        with self.sampler.session(decoding) as session:
            return self._play(episodes, session, self._progress)

    def rollout_together(self, episodes: list[Episode]) -> list[Trajectory]:
        """Like `rollout` in training, but a failure in one process is raised in all of them.

        All processes must call it together. The sampler must not wait for other processes in the middle of a session.
        Raises CommonError.
        """
        with self.sampler.session(None) as session:
            return together(lambda: self._play(episodes, session, self._progress))

    def begin(self, episodes: list[Episode]) -> Playing:
        """Start to play the episodes in a thread, with the current weights and the decoding settings of training."""
        return Playing(self.sampler.session(None), partial(self._play, episodes))

    def _play(
        self,
        episodes: list[Episode],
        session: Session,
        progress: Callable[[int], None] | None,
        given_up: Callable[[], bool] = always_false,
    ) -> list[Trajectory]:
        players = [
            TokenPlayer(number, episode, self._chat, self._reader, self.sampler, self._budget)
            for number, episode in enumerate(episodes)
        ]
        plays = [play_episode(episode, player, self._rules) for episode, player in zip(episodes, players, strict=True)]
        try:
            play_together(plays, session, progress, given_up)
        except ToolsDied as death:
            raise broken_tools(self._bench, death) from death
        return [player.trajectory(self._label) for player in players]


def play_together(
    plays: list[Generator[Request | Reaction, Any]],
    session: Session,
    progress: Callable[[int], None] | None = None,
    given_up: Callable[[], bool] = always_false,
) -> None:
    """Play a batch of episodes to their ends. Raises GivenUp soon after `given_up()` returns True.

    A slow environment answers in a thread, and only its own episode waits for it. Other environments answer at once.
    """
    requests: list[Request] = []
    sampling = 0
    with Background() as background:

        def resume(episode: int, said: Any = None) -> None:
            wanted = advance(plays[episode], said)
            if isinstance(wanted, Reaction):
                background.start(episode, wanted.run)
            elif wanted is not None:
                requests.append(wanted)

        def interrupts() -> bool:
            return background.ready() or given_up()

        for episode in range(len(plays)):
            resume(episode)
        while requests or sampling or background.running:
            sampling += len(requests)
            if progress is not None:
                progress(sampling + background.running)
            asked, requests[:] = list(requests), []
            waits_for_more = background.running or given_up is not always_false
            turns = session.sample(asked, interrupts if waits_for_more else always_false) if sampling else {}
            if given_up():
                raise GivenUp
            sampling -= len(turns)
            for episode, turn in turns.items():
                resume(episode, turn)
            for episode, answer in background.take(wait=not sampling and not requests):
                resume(episode, answer)


class TokenPlayer:
    """Records one episode, token by token. Shape: C tokens since the end of the prompt."""

    # Always False: the calls of a turn that used up the budget are executed, but the policy never sees their results.
    out_of_budget = False

    def __init__(
        self, number: int, episode: Episode, chat: ChatFormat, reader: TokenReader, sampler: Sampler, budget: int
    ) -> None:
        self.calls: list[Any] = []
        self._number, self._episode, self._chat, self._reader = number, episode, chat, reader
        self._ends, self._context, self._budget = sampler.ends, sampler.context, budget
        self._prompt = chat.prompt_ids(episode.task.prompt, episode.task.tools)
        self._ids: list[int] = []  # (C,)
        self._mask: list[int] = []  # (C,) 1 where the policy wrote
        self._logprobs: list[float] | None = []  # (C,)
        self._messages: Messages = []
        self._truncated = self._over = False

    def request(self) -> Request | None:
        """Return a request with the whole context. The limit of the turn is what is left of the budget."""
        if self._over:
            return None
        return Request(self._number, self._prompt + self._ids, self._budget - len(self._ids))

    def take(self, said: Turn) -> dict[str, Any] | None:
        """Append the ids as they were sampled, and return the message that they spell.

        A turn without ids means that the budget is used up: it ends the episode and returns None.
        """
        context = self._prompt + self._ids
        self._append(said.ids, 1, said.logprobs)
        if not said.ids:
            self._truncated = self._over = True
            return None
        self._truncated = said.stop is not Stop.END
        message = self._reader.read(self._episode.environment, said.ids, context, self._episode.task.tools)
        self._messages.append(message)
        return message

    def record_observation(self, said: Messages, over: bool) -> None:
        """Append an observation. If it exceeds the budget or the context, drop it and end the episode.

        The calls were executed all the same, but the policy never sees the dropped results.
        """
        if not over:
            ids = observation_ids(self._chat, said, self._ids, self._ends)
            used = len(self._ids) + len(ids)
            if used > self._budget or len(self._prompt) + used >= self._context:
                self._truncated = self._over = True
                return
            self._append(ids, 0, [0.0] * len(ids))
        self._messages += said

    def _append(self, ids: list[int], own: int, logprobs: list[float] | None) -> None:
        self._ids += ids
        self._mask += [own] * len(ids)
        if logprobs is None or self._logprobs is None:
            self._logprobs = None
        else:
            self._logprobs += logprobs

    def trajectory(self, label: CompletionLabeller) -> Trajectory:
        """Return the episode as a trajectory."""
        turn, component = label(self._ids, self._mask, self._messages)
        return Trajectory(
            task_id=self._episode.task.id,
            prompt_ids=self._prompt,
            completion_ids=self._ids,
            policy_mask=self._mask,
            turn=turn,
            component=component,
            messages=self._messages,
            calls=answered_calls(self.calls, self._messages),
            truncated=self._truncated,
            logprobs=self._logprobs,
        )


def local_engine(config: Config, chat: ChatFormat, model: PreTrainedModel | PeftModel) -> TokenEngine:
    """Make an engine over `model` for use without a GRPO trainer. The weights may change between two rollouts.

    It moves the model to the device of the run and seeds the random numbers with the seed of the run.
    """
    accelerator = Accelerator(cpu=config.hardware.device == "cpu")
    if getattr(model, "hf_device_map", None) is None:  # otherwise it is spread over several devices already
        model.to(accelerator.device)
    set_seed(config.seed, device_specific=True)
    sampler = TransformersSampler(lambda: model, accelerator, chat.tokenizer, config)
    return TokenEngine(sampler, chat, config)
