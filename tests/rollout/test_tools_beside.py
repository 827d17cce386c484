"""Slow tools run beside the sampling, and independent calls of one turn beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from agentrl.benches.execution import WORKERS, ToolEnvironment, plain_text
from agentrl.core.engine import Episode
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall
from agentrl.rollout.background import Background
from agentrl.rollout.guard import ToolsDied
from agentrl.rollout.loop import Reaction, Rules, next_request, play_episode, react
from agentrl.rollout.sampler import Request
from agentrl.rollout.tokens import TokenEngine
from agentrl.sandbox import Sandbox
from tests.support.helpers import Scripted, make_trainer, small

PATIENCE_S = 0.2  # of a slow tool


class Slow:
    """Tools that keep their caller waiting, and remember in which threads they were called."""

    slow_tools = True
    threads: ClassVar[set[int]] = set()

    def __init__(self, wait: float = PATIENCE_S, error: Exception | None = None) -> None:
        self.wait, self.error = wait, error

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        self.threads.add(threading.get_ident())
        time.sleep(self.wait)
        if self.error is not None:
            raise self.error
        return ToolCall(turn, name, arguments, f"{name} did {json.dumps(arguments)}")


class AtOnce(Slow):
    slow_tools = False


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_trainer(small("algo=grpo", "rollout.max_turns=8"), tmp_path_factory.mktemp("out"))


class Slowly(Scripted):
    """Samples one turn after the other, some seconds each, and looks whether more is to be had."""

    pace = 0.0

    @contextmanager
    def session(self, decoding: Any) -> Any:
        self.waiting: list[Request] = []
        self.order: list[int] = []
        with super().session(decoding):
            yield self

    def sample(self, requests: Any, ready: Any = None) -> Any:
        self.waiting += requests
        if ready is not None and ready() and not self.waiting:
            return {}
        assert self.waiting, "nothing is in flight, and a turn was wanted"
        time.sleep(self.pace)
        request = self.waiting.pop(0)
        self.order.append(request.episode)
        return super().sample([request])


def play(trainer: Any, environments: list[Any], turns: int = 3, pace: float = 0.0) -> tuple[list[Any], Slowly]:
    """Every episode calls a tool at all turns but its last."""

    def speak(request: Request, turn: int) -> list[int]:
        text = call("look", turn=turn, episode=request.episode) if turn < turns - 1 else "Done."
        return [*trainer.chat.ids(text), trainer.processing_class.eos_token_id]

    sampler = Slowly(trainer.engine.sampler, speak)
    sampler.pace = pace
    engine = TokenEngine(sampler, trainer.chat, trainer.config)
    episodes = [Episode(trainer.tasks[n % 4], environment) for n, environment in enumerate(environments)]
    return engine.rollout(episodes), sampler


def test_sixty_four_episodes_wait_for_their_slow_tools_together(trainer: Any) -> None:
    began = time.monotonic()
    played, _ = play(trainer, [Slow() for _ in range(64)])
    assert time.monotonic() - began < 64 * 2 * PATIENCE_S / 4
    assert played == play(trainer, [AtOnce(wait=0) for _ in range(64)])[0]
    assert all(len(one.calls) == 2 for one in played)


@pytest.mark.slow
def test_a_slow_tool_delays_its_own_episode_alone(trainer: Any) -> None:
    environments = [Slow(wait=1.0), *(AtOnce(wait=0) for _ in range(4))]
    _, sampler = play(trainer, environments, turns=4)
    first = sampler.order.index(0)
    assert sampler.order[first + 1 :].count(0) == 3 and set(sampler.order[-3:]) == {0}


def test_an_answer_that_comes_while_others_are_sampled_is_taken_at_once(trainer: Any) -> None:
    environments = [Slow(wait=0.1), *(AtOnce(wait=0) for _ in range(8))]
    _, sampler = play(trainer, environments, turns=4, pace=0.05)
    assert 0 in sampler.order[1:-3], "it was left for the end"


def test_tools_that_answer_at_once_are_called_in_this_thread_and_in_order(trainer: Any) -> None:
    AtOnce.threads.clear()
    orders = [play(trainer, [AtOnce(wait=0) for _ in range(6)])[1].order for _ in range(2)]
    assert AtOnce.threads == {threading.get_ident()} and orders[0] == orders[1]


def test_dead_tools_stop_the_batch_from_a_thread_too(trainer: Any) -> None:
    environments = [Slow(wait=30.0), Slow(wait=0.05, error=OSError("the cable is out"))]
    began = time.monotonic()
    with pytest.raises(UserError, match="OSError: the cable is out"):
        play(trainer, environments)
    assert time.monotonic() - began < 10, "the other tool was waited for"


def test_an_interrupt_ends_the_batch_without_waiting_for_tools(trainer: Any) -> None:
    def interrupt(_: Request, turn: int) -> list[int]:
        if turn == 1:
            raise KeyboardInterrupt
        return [*trainer.chat.ids(call("look")), trainer.processing_class.eos_token_id]

    engine = TokenEngine(Scripted(trainer.engine.sampler, interrupt), trainer.chat, trainer.config)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.rollout([Episode(trainer.tasks[0], Slow(wait=30.0)), Episode(trainer.tasks[0], Slow(wait=0.05))])
    assert time.monotonic() - began < 10


def test_the_process_ends_while_a_tool_still_runs() -> None:
    program = (
        "import time\n"
        "from agentrl.rollout.background import Background\n"
        "with Background() as background:\n"
        "    background.start(0, lambda: time.sleep(60))\n"
        "    background.start(1, lambda: 'quick')\n"
        "    print(background.take(wait=True), background.running)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[(1, 'quick')] 1\n" and done.stderr == ""


def test_results_are_taken_by_number_and_errors_are_raised() -> None:
    with Background() as background:
        assert background.take(wait=True) == [] and not background.ready()
        for number in (2, 0, 1):
            background.start(number, lambda number=number: number * 10)
        taken = []
        while background.running:
            taken += background.take(wait=True)
        assert sorted(taken) == [(0, 0), (1, 10), (2, 20)]
        background.start(0, lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            background.take(wait=True)


def test_whoever_drives_an_episode_alone_waits_for_its_slow_tools() -> None:
    player = SimpleNamespace(calls=[], out_of_budget=False, request=lambda: "asked", heard=[])
    player.take = lambda said: said
    player.record_observation = lambda said, over: player.heard.append(said[0]["content"])
    rules = Rules(max_turns=2, dead_tools="stop")
    message = {"tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    play = play_episode(Episode(None, Slow(wait=0)), player, rules)  # type: ignore[arg-type]
    assert next_request(play) == "asked" and next_request(play, message) == "asked" and player.heard == ["look did {}"]
    play = play_episode(Episode(None, Slow(wait=0)), player, rules)  # type: ignore[arg-type]
    next(play)
    assert isinstance(play.send(message), Reaction)


class Independent(AtOnce):
    """The first call of a turn takes longest."""

    independent_calls = True

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        time.sleep(arguments["wait"])
        if self.error is not None:
            raise self.error
        return ToolCall(turn, name, arguments, f"{name} waited")


def turn_with(*waits: float) -> dict[str, Any]:
    calls = [{"function": {"name": f"tool{n}", "arguments": {"wait": wait}}} for n, wait in enumerate(waits)]
    return {"role": "assistant", "tool_calls": calls}


def test_independent_calls_run_side_by_side_and_their_results_stand_in_order() -> None:
    calls: list[ToolCall] = []
    began = time.monotonic()
    said, _ = react(Independent(), turn_with(0.5, 0.4, 0.3, 0.2), calls, "stop")
    assert time.monotonic() - began < 1.0
    assert [one["name"] for one in said] == [one.name for one in calls] == ["tool0", "tool1", "tool2", "tool3"]
    assert [one["content"] for one in said] == [f"tool{n} waited" for n in range(4)]


def test_calls_that_may_depend_on_each_other_run_one_after_the_other() -> None:
    environment, seen = AtOnce(wait=0), []

    def watched(name: str, arguments: Any, turn: int) -> ToolCall:
        seen.append((name, threading.get_ident()))
        time.sleep(0.01 if name == "tool0" else 0)
        return ToolCall(turn, name, arguments, "")

    environment.call = watched  # type: ignore[method-assign]
    react(environment, turn_with(0, 0, 0), [], "stop")
    assert seen == [(f"tool{n}", threading.get_ident()) for n in range(3)]


def test_a_dead_tool_among_independent_calls_stops_or_is_an_error() -> None:
    environment = Independent(error=OSError("gone"))
    with pytest.raises(ToolsDied, match="gone"):
        react(environment, turn_with(0, 0), [], "stop")
    calls: list[ToolCall] = []
    with pytest.warns(UserWarning, match="gone"):
        said, _ = react(environment, turn_with(0, 0), calls, "continue")
    assert [one.error for one in calls] == [True, True] and len(said) == 2


def test_tools_in_the_sandbox_run_side_by_side() -> None:
    source = "import time\ndef nap(s):\n    time.sleep(s)\n    return s\n"
    with Sandbox(WORKERS) as sandbox:
        environment = ToolEnvironment({"nap": source}, plain_text, sandbox)
        naps = [{"function": {"name": "nap", "arguments": {"s": s}}} for s in (0.01, 0.01, 0.01)]
        react(environment, {"tool_calls": naps}, [], "stop")  # starts the workers
        naps = [{"function": {"name": "nap", "arguments": {"s": s}}} for s in (1.5, 1.4, 1.3)]
        calls: list[ToolCall] = []
        began = time.monotonic()
        react(environment, {"tool_calls": naps}, calls, "stop")
        assert time.monotonic() - began < 3.0
        assert [one.observation for one in calls] == ["1.5", "1.4", "1.3"]
