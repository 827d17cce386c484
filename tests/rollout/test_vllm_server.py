"""Turns from a vLLM server: one by one, with seeds of their own, and a clear word when the server is gone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.endpoint.vllm import VllmServer
from agentrl.rollout import vllm_server
from agentrl.rollout.sampler import Request, Stop, Turn
from agentrl.rollout.vllm_server import ServerSampler, seed_of
from agentrl.trainers.parity import check_parity, parity_bound, parity_requests, probe_logps
from tests.support.helpers import composed, make_trainer, small
from tests.support.vllm_stand_in import StandIn

END = 7
ROLLOUT = composed("rollout.max_turn_tokens=5", "rollout.temperature=0.7", "rollout.top_p=0.9").rollout


def sampler_of(stand_in: StandIn, **changes: Any) -> ServerSampler:
    given = {
        "server": VllmServer(stand_in.url),
        "rollout": ROLLOUT,
        "refresh": lambda: "policy",
        "origin": lambda decoding: "step 3",
        "rest": lambda: None,
        "ends": [END],
        "context": 12,
    }
    return ServerSampler(**{**given, **changes})


def bodies(stand_in: StandIn) -> list[Any]:
    return [body for path, body in stand_in.asked if path == "/v1/completions"]


def test_a_turn_is_asked_for_by_ids_with_every_setting_that_a_checkpoint_may_bring() -> None:
    with StandIn().serving() as stand_in:
        sampler = sampler_of(stand_in)
        with sampler.session(None) as session:
            turns = session.sample([Request(0, [1, 2, 3], 4)])
        with sampler.session(Decoding(0.0)) as session:
            session.sample([Request(0, [1, 2, 3], 99)])
    trained, greedy = bodies(stand_in)
    assert (turns[0].ids, turns[0].logprobs, turns[0].stop) == ([5, END], [-0.5, -0.25], Stop.END)
    assert trained == {
        "model": "policy",
        "prompt": [1, 2, 3],
        "max_tokens": 4,
        "seed": seed_of("step 3", 0, 0),
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [END],
        "logprobs": 0,
        "return_token_ids": True,
    }
    assert (greedy["temperature"], greedy["top_p"], greedy["max_tokens"]) == (0.0, 1.0, 5)


def test_every_turn_of_every_episode_has_a_seed_of_its_own_and_the_same_when_it_is_sampled_again() -> None:
    seeds = []
    for _ in range(2):
        with StandIn().serving() as stand_in, sampler_of(stand_in).session(None) as session:
            for _ in range(2):  # turns
                waiting = session.sample([Request(episode, [1], 3) for episode in range(3)])
                while len(waiting) < 3:
                    waiting |= session.sample([])
        seeds.append(sorted(body["seed"] for body in bodies(stand_in)))
    assert seeds[0] == seeds[1] == sorted(seed_of("step 3", episode, turn) for episode in range(3) for turn in range(2))
    assert len(set(seeds[0])) == 6 and seed_of("step 4", 0, 0) not in seeds[0]


def test_a_slow_turn_holds_up_no_other() -> None:
    done = threading.Event()

    def say(body: Any) -> Any:
        if body["prompt"] == [1]:
            assert done.wait(20)
        return [END], [-0.5]

    with StandIn(say).serving() as stand_in, sampler_of(stand_in).session(None) as session:
        seen = set(session.sample([Request(episode, [episode], 3) for episode in (1, 2, 3)]))
        while len(seen) < 2:
            seen |= set(session.sample([]))
        assert seen == {2, 3}
        assert set(session.sample([Request(2, [2, END, 4], 3)])) == {2}  # its next turn, while the first is in flight
        done.set()
        assert set(session.sample([])) == {1}


def test_no_request_is_made_where_nothing_fits() -> None:
    with StandIn().serving() as stand_in, sampler_of(stand_in).session(None) as session:
        assert session.sample([Request(0, [1], 0)])[0].stop is Stop.LIMIT
        assert session.sample([Request(0, list(range(12)), 3)])[0].stop is Stop.CONTEXT
        session.sample([Request(0, list(range(10)), 5)])
    assert [body["max_tokens"] for body in bodies(stand_in)] == [2]


def refused(stand_in: StandIn, kill: Any = None) -> str:
    began = time.perf_counter()
    with sampler_of(stand_in).session(None) as session:
        session.ask([Request(0, [1], 3), Request(1, [2], 3)])
        if kill is not None:
            kill()
        with pytest.raises(UserError) as error:
            session.sample([])
    assert time.perf_counter() - began < 9
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_server_that_dies_in_the_middle_ends_the_run_within_seconds() -> None:
    asked = threading.Event()

    def say(body: Any) -> Any:
        asked.set()
        time.sleep(30)
        return [END], [-0.5]

    def kill() -> None:
        assert asked.wait(10)
        stand_in.die()

    with StandIn(say).serving() as stand_in:
        text = refused(stand_in, kill)
    assert text.startswith(f"vllm.url={stand_in.url}: the vLLM server failed (")
    assert (
        "its log says why; start it again and give the same command: the run goes on from its last checkpoint" in text
    )


@pytest.mark.slow
def test_a_server_that_hangs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "SILENCE_S", 0.3)
    with StandIn().serving() as stand_in:
        monkeypatch.setattr(stand_in, "answer", lambda path, body: time.sleep(60))
        assert "the vLLM server failed (" in refused(stand_in)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (RuntimeError("EngineCore died"), "HTTP 500 for /v1/completions: EngineCore died"),
        (None, "no token ids or no log-probs"),
    ],
)
def test_what_a_server_refuses_is_said(said: Any, words: str) -> None:
    def say(body: Any) -> Any:
        if isinstance(said, Exception):
            raise said
        return said, None

    with StandIn(say).serving() as stand_in:
        assert words in refused(stand_in)


# --- new weights ------------------------------------------------------------------------------------------------------


def played(trainer: Any, off: float) -> dict[int, Turn]:
    """What vLLM would say to the parity requests, with its log-probs off by as much."""
    ids = [9, 8, 7]
    logps = {one.episode: probe_logps(trainer, one.ids, ids) + off for one in parity_requests(trainer)}
    return {episode: Turn(ids, values.tolist(), Stop.LIMIT) for episode, values in logps.items()}


def test_log_probs_that_differ_after_new_weights_stop_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(small("algo=grpo", "rollout.top_p=0.5", "rollout.temperature=0.7"), tmp_path)
    trainer.model.train()
    check_parity(trainer, played(trainer, 0.0005))
    assert trainer.model.training
    with pytest.raises(UserError, match=r"differ by 0\.002 nats a token, and 0\.001 is the limit \(vllm\.parity\)"):
        check_parity(trainer, played(trainer, 0.002))
    with pytest.raises(UserError, match=r"differ by nan"):
        check_parity(trainer, played(trainer, float("nan")))
    trainer.config.vllm.parity = 0.01
    check_parity(trainer, played(trainer, 0.002))


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        ((), 0.001),
        (("hardware.bf16=true",), 0.1),
        (("model.dtype=bfloat16",), 0.1),
        (("vllm.kv_cache=fp8",), 0.3),
        (("vllm.parity=0.02",), 0.02),
    ],
)
def test_how_far_log_probs_may_be_apart(overrides: tuple[str, ...], bound: float) -> None:
    assert parity_bound(composed(*overrides)) == bound
