"""minihif: grading by hand, what the generator promises, and a trade-off that is there."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from agentrl.benches import load_bench
from agentrl.benches.minihif import Rule, is_held_out, permitted_words, system_reward, user_reward
from tests.support.helpers import composed

BAN = Rule("sure", ("dog", "hen"), 0)
CAP = Rule("well", (), 4)
ASKED = ("cat", "cow", "dog", "hen")


@pytest.fixture(scope="module")
def bench():
    return load_bench(composed("algo=hipo").bench)


@pytest.mark.parametrize(
    ("rule", "response", "expected"),
    [
        (BAN, "sure cat cow", 1.0),
        (BAN, "Sure, cat and cow!", 1.0),
        (BAN, "cat cow", 0.7),  # no opening word
        (BAN, "sure cat dog", 0.3 + 0.7 * 0.75),  # half of the banned words: 1 - 0.5^2
        (BAN, "sure dog hen dog", 0.3),
        (BAN, "dog hen", 0.0),
        (BAN, "  ", 0.0),  # nothing said keeps no rule
        (CAP, "well cat dog cow", 1.0),
        (CAP, "well cat dog cow hen", 0.3 + 0.7 * 0.75),  # one word over, two forfeit all
        (CAP, "well cat dog cow hen pig fox", 0.3),
    ],
)
def test_the_system_reward_by_hand(rule: Rule, response: str, expected: float):
    assert system_reward(rule, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("cat dog cow hen", 1.0),
        ("sure hen cow dog cat", 1.0),  # a greeting is free
        ("sure cat cow", 0.5),
        ("cat cat cat cat cat", 0.25),
        ("cat dog cow hen pig fox owl", 4 / 6),  # three words too many, one of them free
        ("", 0.0),
    ],
)
def test_the_user_reward_by_hand(response: str, expected: float):
    assert user_reward(ASKED, response) == pytest.approx(expected)


def test_kinds_are_one_to_one_and_share_a_rule(bench):
    tasks = bench.tasks("test")
    assert len(tasks) == 200
    for conflict, aligned in zip(tasks[::2], tasks[1::2], strict=True):
        assert (conflict.data["kind"], aligned.data["kind"]) == ("conflict", "aligned")
        assert conflict.cluster == aligned.cluster
        assert conflict.data["rule"] == aligned.data["rule"]


def test_no_rule_is_in_both_splits_and_the_data_repeat(bench):
    train, test = bench.tasks("train"), bench.tasks("test")
    assert not {t.data["system"] for t in train} & {t.data["system"] for t in test}
    assert all(is_held_out(t.data["rule"]) for t in test)
    assert [t.prompt for t in bench.tasks("test")] == [t.prompt for t in test]
    assert len({t.id for t in train + test}) == len(train) + len(test)


def test_the_test_split_has_many_rules_of_similar_weight(bench):
    """Rules are clusters: a few with a third of all rows would leave intervals with little to go by."""
    sizes = Counter(task.cluster for task in bench.tasks("test"))
    assert len(sizes) >= 50 and max(sizes.values()) <= 12
    assert 200**2 / sum(size**2 for size in sizes.values()) >= 50
    caps = sum(bool(task.data["rule"].limit) for task in bench.tasks("test"))
    assert 10 <= caps <= 40  # and there are rules of both sorts


def test_a_conflict_costs_and_an_aligned_request_does_not(bench):
    for task in bench.tasks("test"):
        rule, items = task.data["rule"], task.data["items"]
        best = bench.rewards(task, bench.expert_response(task))
        servile = bench.rewards(task, " ".join((rule.opener, *items)))
        assert best["sys"] == 1.0
        assert servile["user"] == 1.0
        if task.data["kind"] == "aligned":
            assert best["user"] == 1.0 and servile["sys"] == 1.0
        else:
            assert best["user"] < 1.0 and servile["sys"] == pytest.approx(0.3)
        # Every word beyond what is permitted buys r_user and costs r_sys more than the one before.
        beyond = [item for item in items if item not in permitted_words(rule, items)]
        replies = [" ".join((rule.opener, *permitted_words(rule, items), *beyond[:n])) for n in range(len(beyond) + 1)]
        user = [bench.rewards(task, reply)["user"] for reply in replies]
        system = [bench.rewards(task, reply)["sys"] for reply in replies]
        assert all(after > before for before, after in itertools.pairwise(user))
        costs = [before - after for before, after in itertools.pairwise(system)]
        assert costs == sorted(costs) and all(cost > 0 for cost in costs)


def test_replies_made_elsewhere_are_scored(bench):
    task = bench.tasks("test")[0]
    said = {"row": 0, "suite": "test", "response": bench.expert_response(task)}
    assert bench.score_transcript(said) == (bench.metrics(task, said["response"]), None)
    assert bench.score_transcript({"row": 0, "response": ""})[1].startswith("no suite: minihif has rows of test, train")
