"""Shared by the tests of BFCL: the bench, and episodes that make the gold calls."""

from __future__ import annotations

import importlib.util

import pytest

from agentrl.benches.bfcl.environment import STEP_LIMIT
from agentrl.benches.bfcl.simulator import INSTALL
from agentrl.benches.bfcl.traces import gold_call
from tests.support.helpers import composed

needs_bfcl = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None, reason=f"bfcl-eval is not installed: {INSTALL}"
)


def bench_of(*overrides):
    from agentrl.benches import load_bench

    return load_bench(composed("bench=bfcl", *overrides).bench)


def gold_steps(entry):
    return [[gold_call(text, entry.docs) for text in turn] for turn in entry.gold]


def play_gold(entry, environment):
    """Messages of an episode of gold calls, one a step where the step limit allows; yields after every step."""
    messages = []
    for turn in gold_steps(entry):
        size = -(-len(turn) // STEP_LIMIT) or 1
        for start in range(0, len(turn), size):
            step = turn[start : start + size]
            calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in step]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            for name, arguments in step:
                made = environment.call(name, arguments, 0)
                assert not made.error, (entry.id, made)
                messages.append({"role": "tool", "name": name, "content": made.observation})
            assert environment.continue_episode(), entry.id
            yield messages
        messages.append({"role": "assistant", "content": "Done."})
        said = environment.next_message()
        if said is not None:
            messages.append({"role": "user", "content": said})
    assert said is None, "the user had more to say"
    yield messages
