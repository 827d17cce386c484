"""Whatever is asked of a session, the log-probs of its turns are those of plain forward passes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.core.engine import Decoding
from agentrl.rollout import continuous, key_values, replays
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed
from agentrl.rollout.replays import Replays
from agentrl.rollout.sampler import Request
from tests.support.networks import VOCABULARY, network
from tests.support.recorder import Recorder

CONTEXT = 128
LONG = [1 + place % 60 for place in range(100)]  # prompts begin with a part of it, so they share beginnings
ids = st.lists(st.integers(1, VOCABULARY - 2), max_size=6)
prompt = st.builds(lambda shared, own: LONG[:shared] + own or [5], st.sampled_from([0, 0, 1, 31, 64, 70, 100]), ids)
# How the context of the next turn follows from this one: it goes on, is cut, is exchanged, or begins alike.
change = st.sampled_from(["append", "append", "append", "cut", "other", "inside"])
episode = st.tuples(prompt, st.integers(1, 4), st.lists(st.tuples(change, ids, st.integers(0, 9)), max_size=3))


@cache
def model() -> Any:
    return network(num_hidden_layers=1, temperature=1.0).eval()


def followed(context: list[int], how: str, new: list[int]) -> list[int]:
    half = len(context) // 2
    changed = {
        "append": context + new,
        "cut": context[: max(1, half)],
        "other": new,
        "inside": context[:half] + new + context[half:],
    }[how]
    return changed[:CONTEXT] or [3]


@torch.no_grad()
def wanted(context: list[int], said: list[int]) -> torch.Tensor:
    logits = model()(torch.tensor([context + said])).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(episode, min_size=1, max_size=4),
    st.sampled_from([1, 200, 600, 5000]),
    st.sampled_from([1, 8]),
    st.sampled_from([16, 2048]),
    st.booleans(),
)
def test_any_session_samples_from_the_policy(
    episodes: Any, budget: int, ahead: int, together: int, replayed: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "AHEAD", ahead)
        patch.setattr(continuous, "TOGETHER", together)
        patch.setattr(key_values, "SPARE", 32 * ahead)
        patch.setattr(replays, "PLAIN", 1)
        patch.setattr(replays, "CHECKED", 1)
        play(episodes, budget, replayed)


@torch.no_grad()
def play(episodes: Any, budget: int, replayed: bool) -> None:
    torch.manual_seed(0)
    plans = [(context, list(turns)) for context, rollouts, turns in episodes for _ in range(rollouts)]
    new = [Request(number, context[:CONTEXT], number % 7) for number, (context, _) in enumerate(plans)]
    waited = {one.episode: one for one in new}
    answered = 0
    with packed(model()):
        passes = Replays(model(), Recorder()) if replayed else None
        session = Continuous(model(), Draw(Decoding(1.0, 1.0)), [VOCABULARY - 1], CONTEXT, 8, budget, passes)
        found = []
        while waited:
            ended = session.sample(new)
            new = []
            for number, turn in ended.items():
                request = waited.pop(number)
                found.append((request, turn))
                answered += 1
                if plans[number][1]:
                    how, added, limit = plans[number][1].pop(0)
                    new.append(Request(number, followed(request.ids + turn.ids, how, added), limit))
                    waited[number] = new[-1]
    assert answered == sum(rollouts * (1 + len(turns)) for _, rollouts, turns in episodes)
    for request, turn in found:
        room = min(request.limit, 8, CONTEXT - len(request.ids))
        assert len(turn.ids) <= room and (len(turn.ids) == room or turn.ids[-1] == VOCABULARY - 1)
        if turn.ids:
            torch.testing.assert_close(torch.tensor(turn.logprobs), wanted(request.ids, turn.ids), atol=2e-5, rtol=1e-5)
