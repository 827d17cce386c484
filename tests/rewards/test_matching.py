"""Hard-credit matching: similarities by hand, optimal against greedy, turn rewards, and MatchTIR's verdicts."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.schema import Reward, ToolRl
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rewards.matching import call_rewards, match, similarity
from agentrl.rewards.turns import turn_rewards

SHARED = Path(os.environ.get("AGENTRL_SHARED") or Path(__file__).parents[3] / "shared")
GREEDY_LOSES = [[0.9, 0.8], [0.8, 0.0]]  # greedy takes 0.9 and leaves nothing: 0.9 against 1.6


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("pred", "gold", "expected"),
    [
        (call("f", {"a": 1}), call("g", {"a": 1}), 0.0),  # another name
        (call("F", {"a": 1}), call("f", {"a": 1}), 1.0),  # (1 + 1 + 1) / (2 + 1), names without case
        (call("f", {"a": 2}), call("f", {"a": 1}), 2 / 3),  # (1 + 1 + 0) / 3
        (call("f", {"a": 1, "b": 2}), call("f", {"a": 1}), 2.5 / 3),  # Jaccard 1/2
        (call("f", {}), call("f", {"a": 1, "b": 2}), 1 / 4),  # (1 + 0 + 0) / 4
        (call("f", {}), call("f", {}), 1.0),  # (1 + 1) / 2
        (call("f", {"a": True}), call("f", {"a": 1}), 1.0),  # Python equality
        (call("f", {"a": None}), call("f", {"b": None}), 1 / 3),  # an absent key is no None
        (call("f", '{"a": 1}'), call("f", {"a": 1}), 1.0),  # JSON text of an object
        (call("f", [1, 2]), call("f", {"a": 1}), 1 / 3),
        (call("f", "not json"), call("f", {"a": 1}), 1 / 3),
        (call("f", None), call("f", {}), 1.0),
    ],
)
def test_similarity_by_hand(pred: dict[str, Any], gold: dict[str, Any], expected: float) -> None:
    assert similarity(pred, gold) == pytest.approx(expected)


def test_hungarian_is_optimal_where_greedy_is_not() -> None:
    assert match(GREEDY_LOSES, "hungarian") == [1, 0]
    assert match(GREEDY_LOSES, "greedy") == [0, None]


def test_only_positive_scores_match_and_ties_go_by_order() -> None:
    assert match([[0.0, 0.0]], "hungarian") == match([[0.0, 0.0]], "greedy") == [None]
    assert match([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], "greedy") == [0, 1, None]
    assert match([], "greedy") == [] and match([[], []], "hungarian") == [None, None]
    with pytest.raises(ValueError, match="choose from"):
        match([[1.0]], "auction")
    with pytest.raises(ValueError, match="length"):
        match([[1.0], []])


matrices = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, 4).map(lambda x: x / 4), min_size=columns, max_size=columns), min_size=1, max_size=4
    )
)


def total(scores: list[list[float]], assigned: list[int | None]) -> float:
    return sum(row[j] for row, j in zip(scores, assigned, strict=True) if j is not None)


@given(matrices)
def test_assignments_are_one_to_one_and_hungarian_is_the_brute_force_best(scores: list[list[float]]) -> None:
    rows, columns = len(scores), len(scores[0])
    padded = [[*row, *[0.0] * rows] for row in scores]  # a prediction may stay unmatched
    best = max(total(padded, list(chosen)) for chosen in itertools.permutations(range(columns + rows), rows))
    for method in ("hungarian", "greedy"):
        assigned = match(scores, method)
        used = [j for j in assigned if j is not None]
        assert len(used) == len(set(used))
        assert all(row[j] > 0 for row, j in zip(scores, assigned, strict=True) if j is not None)
        if method == "hungarian":
            assert total(scores, assigned) == pytest.approx(best)
        else:
            assert best / 2 - 1e-9 <= total(scores, assigned) <= best + 1e-9  # greedy is a 2-approximation


def test_call_rewards_and_penalty() -> None:
    gold = [call("f", {"a": 1})]
    pred = [call("f", {"a": 2}), call("f", {"a": 1}), call("g", {})]
    assert call_rewards(pred, gold) == [0.0, 1.0, 0.0]  # the exact call takes the only reference
    assert call_rewards(pred, gold, unmatched_penalty=0.5) == [-0.5, 1.0, -0.5]
    assert call_rewards([], gold) == []
    with pytest.raises(ValueError, match="subtracted"):
        call_rewards(pred, gold, unmatched_penalty=-1.0)


def episode(*turns: str | list[tuple[str, Any]]) -> Trajectory:
    """A trajectory without tokens: text turns, or the calls of a tool turn."""
    messages, calls = [], []
    for i, turn in enumerate(turns):
        messages.append({"role": "assistant", "content": turn if isinstance(turn, str) else ""})
        if not isinstance(turn, str):
            calls += [ToolCall(i, name, arguments) for name, arguments in turn]
            messages.append({"role": "tool", "content": "ok"})
    return Trajectory("t", [], [], [], [], [], messages, calls)


TRACE = ExpertTrace("t", (TraceTurn((), (call("f", {"a": 1}), call("g", {})), ("", "")),), "Paris", "generated")


def config(name: str = "matching", penalty: float = 0.0, variant: str = "f1", **switches: Any) -> Reward:
    toolrl = ToolRl(**({"correct_max1": False, "with_length": False, "schedule": "none"} | switches))
    return Reward(
        name=name,
        matching="hungarian",
        answer_tag=False,
        unmatched_penalty=penalty,
        ot_reg=0.1,
        ftrl_variant=variant,
        toolrl=toolrl,
    )


def test_turn_rewards_by_hand() -> None:
    rollout = episode([("f", {"a": 1}), ("h", {})], [("g", {})], [("g", {})], "<answer>Paris, France</answer>")
    # turn 0: (1 + 0) / 2; turn 1: 1; turn 2: the reference g is taken; answer: {paris, france} against {paris}: 2/3
    assert turn_rewards(rollout, TRACE.calls, "Paris", config()) == pytest.approx([0.5, 1, 0, 2 / 3])
    assert turn_rewards(rollout, TRACE.calls, "Paris", config(penalty=0.5)) == pytest.approx([0.25, 1, -0.5, 2 / 3])
    assert turn_rewards(rollout, TRACE.calls, "Paris", config("answer")) == pytest.approx([0, 0, 0, 2 / 3])
    assert turn_rewards(rollout, [], "Paris", config(penalty=0.5)) == pytest.approx([-0.5, -0.5, -0.5, 2 / 3])


def test_an_episode_that_ends_on_a_call_has_no_answer() -> None:
    assert turn_rewards(episode([("f", {"a": 1})]), TRACE.calls, "Paris", config()) == [1.0]
    assert turn_rewards(episode([("f", {"a": 1})]), TRACE.calls, "Paris", config("answer")) == [0.0]
    assert turn_rewards(episode(), TRACE.calls, "Paris", config()) == []
    # only the last turn answers: one before it without calls earns nothing
    assert turn_rewards(episode("Paris", "Paris"), TRACE.calls, "Paris", config()) == [0.0, 1.0]


def test_parity_with_matchtir() -> None:
    path = SHARED / "parity" / "matchtir_reward.jsonl"
    if not path.exists():
        pytest.skip(f"no parity data at {path}; set AGENTRL_SHARED")
    cases = calls = 0
    for case in map(json.loads, path.read_text().splitlines()):
        official = case["official"]
        gold = [call(reference["name"], reference["parameters"]) for reference in case["gold_calls"]]
        if "error" in official:  # non-object arguments crash there; here they count as no arguments
            continue
        pred = official["pred_calls"]
        scores = [[similarity(p, g) for g in gold] for p in pred]
        for row, wanted in zip(scores, official["similarity"], strict=True):
            assert row == pytest.approx(wanted, abs=1e-12), case["case"]
        assert match(scores, "greedy") == official["assignment"], case["case"]
        assert call_rewards(pred, gold, "greedy") == pytest.approx(official["call_rewards"], abs=1e-12)
        halved = call_rewards(pred, gold, "greedy", 0.5)
        assert halved == pytest.approx(official["call_rewards_penalty_half"], abs=1e-12)
        if case["optimal_matching_total"] is not None:
            assert sum(call_rewards(pred, gold)) == pytest.approx(case["optimal_matching_total"], abs=1e-9)
        cases, calls = cases + 1, calls + len(pred)
    assert cases > 150 and calls > 400


@pytest.mark.parametrize("reward", ["matching", "ot", "answer"])
def test_a_thought_that_the_budget_cut_earns_no_answers_reward(reward: str) -> None:
    """As in evaluation, where such an episode has no answer: what was thought is not paid as one."""
    cut = replace(episode("<think>Paris"), truncated=True)
    assert turn_rewards(cut, [], "Paris", config(reward)) == [0.0]
    assert turn_rewards(episode("<think>Rome?</think>Paris"), [], "Paris", config(reward)) == [1.0]
