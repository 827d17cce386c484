"""What the loop asks of a sampler, and what each sampler makes of it."""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from agentrl.core.engine import Decoding, Episode
from agentrl.rollout import vllm_colocated
from agentrl.rollout.sampler import Request, Stop, cut_turn
from agentrl.rollout.vllm_colocated import ColocatedSampler
from agentrl.trainers import samplers
from agentrl.trainers.samplers import policy_sampler
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import Scripted, composed, make_trainer, small

END = 7


@pytest.mark.parametrize(
    ("sampled", "limit", "context", "kept", "stop"),
    [
        ([5, END], 4, 99, [5, END], Stop.END),
        ([5, 6, 5, 6], 4, 99, [5, 6, 5, 6], Stop.LIMIT),
        ([5, 6, END], 2, 99, [5, 6], Stop.LIMIT),  # the end that was cut away is none
        ([5, 6], 4, 5, [5, 6], Stop.CONTEXT),
        ([5, END], 4, 5, [5, END], Stop.END),
        ([5], 0, 99, [], Stop.LIMIT),
    ],
)
def test_a_turn_says_why_it_ended(sampled: Any, limit: int, context: int, kept: Any, stop: Stop) -> None:
    turn = cut_turn(Request(0, [1, 2, 3], limit), sampled, [-0.5] * len(sampled), [END], context)
    assert (turn.ids, turn.logprobs, turn.stop) == (kept, [-0.5] * len(kept), stop)


class OneByOne(Scripted):
    """Answers the request that came last first, and one request at a time."""

    @contextmanager
    def session(self, decoding: Any) -> Any:
        self.waiting: list[Request] = []
        self.together = 0
        with super().session(decoding):
            yield self

    def sample(self, requests: Any, ready: Any = None) -> Any:
        self.waiting += requests
        self.together = max(self.together, len(self.waiting))
        return super().sample([self.waiting.pop()])


def test_turns_may_come_back_one_by_one_and_in_any_order(tmp_path: Path) -> None:
    trainer = make_trainer(small("algo=grpo"), tmp_path)
    tasks = [trainer.tasks[row // 4] for row in range(8)]

    def speak(request: Request, turn: int) -> list[int]:
        text = expert_script(tasks[request.episode], request.episode % 4, turn)
        return [*trainer.chat.ids(text), trainer.processing_class.eos_token_id]

    played = []
    for kind in (Scripted, OneByOne):
        trainer.engine.sampler = kind(trainer.engine.sampler, speak)
        episodes = [Episode(task, trainer.bench.environment(task)) for task in tasks]
        played.append(trainer.engine.rollout(episodes))
    assert trainer.engine.sampler.together == 8
    assert played[0] == played[1]
    assert len({one.num_turns for one in played[0]}) > 1


def test_the_backend_is_asked_as_trl_asks_it() -> None:
    asked = inspect.signature(VLLMGeneration.generate).parameters
    assert {"prompts", "images", "num_generations"} <= set(asked) and asked["profiler"].default is None
    made = list(inspect.signature(VLLMGeneration.__init__).parameters)
    assert made[:5] == ["self", "model", "accelerator", "processing_class", "mode"]
    assert {"server_base_url", "server_timeout", "temperature", "top_p"} <= set(made)
    for name in ("sync_weights", "_init_vllm", "_iter_named_params"):  # called or overridden
        assert callable(getattr(VLLMGeneration, name))
    assert "LLM(" in inspect.getsource(VLLMGeneration._init_vllm)


class Backend:
    """What TRL's VLLMGeneration is to the sampler."""

    mode, temperature, top_p = "colocate", 1.0, 0.9
    model = None  # no adapters
    llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=12)))

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.generation_kwargs: dict[str, Any] | None = None

    def generate(self, prompts: Any, images: Any, num_generations: int) -> Any:
        self.asked.append((len(prompts), num_generations, self.temperature, self.top_p))
        ids = [[5, 6, END] for _ in prompts]
        return prompts, ids, [[[-0.1], [-0.2], [None]] for _ in prompts], None


def test_colocated_vllm_takes_the_setting_of_an_evaluation() -> None:
    backend, fresh = Backend(), []
    sampler = ColocatedSampler(backend, lambda: fresh.append(True), [END])
    requests = [Request(row, [1, 2, 3], 2 if row else 9) for row in range(4)]
    with sampler.session(None) as session:
        turns = session.sample(requests)
        session.sample(requests[:1])
    with sampler.session(Decoding(0.0, 1.0)) as session:
        session.sample(requests)
    assert backend.asked == [(4, 1, 1.0, 0.9), (1, 1, 1.0, 0.9), (4, 1, 0.0, 1.0)]
    assert (backend.temperature, backend.top_p, len(fresh)) == (1.0, 0.9, 2)  # weights come once a batch of episodes
    assert (turns[0].ids, turns[0].logprobs, turns[0].stop) == ([5, 6, END], [-0.1, -0.2, None], Stop.END)
    assert (turns[1].ids, turns[1].logprobs, turns[1].stop) == ([5, 6], [-0.1, -0.2], Stop.LIMIT)
    assert backend.generation_kwargs == {"stop_token_ids": [END]}  # vLLM reads the checkpoint's tokenizer, not ours
    assert sampler.context == 12  # of vLLM, which may have less room than the model


class World:
    """Two threads that exchange values as processes do."""

    def __init__(self) -> None:
        self.ranks, self._values = threading.local(), [None, None]
        self._barrier = threading.Barrier(2, timeout=10)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found


class SharedBackend(Backend):
    """vLLM split over two processes, here threads, as TRL asks it: all prompts in one call, then a slice for each."""

    def __init__(self, rank: int, world: World) -> None:
        super().__init__()
        self._rank, self._world = rank, world

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> Any:
        every = [ids for own in self._world.gather(self._rank, prompts) for ids in own]
        own = every[self._rank * len(prompts) : (self._rank + 1) * len(prompts)]
        return prompts, [[ids[-1], END] for ids in own], [[[-0.1], [-0.2]] for _ in own], None


def test_processes_that_share_a_vllm_get_their_own_replies_and_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(vllm_colocated, "any_process", lambda here: any(world.gather(world.ranks.own, here)))
    monkeypatch.setattr(vllm_colocated, "most_of_processes", lambda n: max(world.gather(world.ranks.own, n)))
    rounds = ([[11, 12, 13], [14]], [[21], [22, 23], [24]])  # the contexts of each turn, in each process

    def play(rank: int) -> list[list[int]]:
        world.ranks.own = rank
        sampler = ColocatedSampler(SharedBackend(rank, world), lambda: None, [END], joint=True)
        replies = []
        with sampler.session(None) as session:
            for contexts in rounds[rank]:
                turns = session.sample([Request(row, [1, last], 9) for row, last in enumerate(contexts)])
                replies.append([turns[row].ids[0] for row in range(len(contexts))])
        return replies

    with ThreadPoolExecutor(2) as pool:
        assert tuple(pool.map(play, (0, 1))) == rounds  # every reply repeats the last token of its own context


def test_colocated_vllm_gets_the_weights_of_every_update_once_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, synced, checked = Backend(), [], []
    backend.sync_weights = lambda: synced.append(trainer.state.global_step)  # type: ignore[attr-defined]
    trainer = SimpleNamespace(vllm_generation=backend, eos_token_ids=[END], config=composed("vllm.mode=colocate"))
    trainer.state, trainer._last_loaded_step = SimpleNamespace(global_step=0), -1
    monkeypatch.setattr(samplers, "parity_requests", lambda trainer: [Request(0, [1], 9)])
    monkeypatch.setattr(samplers, "check_parity", lambda trainer, turns: checked.append(turns[0].ids))
    kept: list[Any] = []
    monkeypatch.setattr(samplers, "keep_base", kept.append)  # tests/trainers/test_vllm_sync.py says what it does
    sampler = policy_sampler(trainer)
    assert kept == [backend]
    for step in (0, 0, 2, 3):
        trainer.state.global_step = step
        if step == 3:  # TRL syncs by itself before it trains
            trainer._last_loaded_step = 3
        with sampler.session(Decoding(0.0)) as session:
            session.sample([Request(0, [1], 9)])
    assert synced == [0, 2] and checked == 3 * [[5, 6, END]]
    assert [heat for *_, heat, _ in backend.asked] == [2.0, 0.0, 0.0, 2.0, 0.0, 2.0, 0.0]  # checks are hot


def test_engines_of_trl_get_the_type_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(vllm_generation, "LLM", lambda **how: made.append(how), raising=False)
    for kind in ("auto", "fp8"):
        with samplers.vllm_cache(kind):
            vllm_generation.LLM(model="m")
    vllm_generation.LLM(model="m")
    assert made == [{"model": "m"}, {"model": "m", "kv_cache_dtype": "fp8"}, {"model": "m"}]


def test_log_probs_stand_beside_their_tokens_and_are_zero_on_observations(tmp_path: Path) -> None:
    trainer = make_trainer(small("algo=grpo"), tmp_path, expert_script)
    sampler = trainer.engine.sampler
    without = sampler.sample

    def sample(requests: Any, ready: Any = None) -> Any:
        turns = without(requests)
        return {row: turn.__class__(turn.ids, [-1.0] * len(turn.ids), turn.stop) for row, turn in turns.items()}

    sampler.sample = sample
    rows = [{"task": 0, "prompt": trainer.tasks[0].prompt} for _ in range(4)]
    trainer._generate_and_score_completions(rows)
    for one in trainer._trajectories:
        assert one.logprobs == [-1.0 if own else 0.0 for own in one.policy_mask]
    assert any(0 in one.policy_mask for one in trainer._trajectories)
