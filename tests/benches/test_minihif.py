"""minihif: grading by hand, what the generator promises, and a trade-off that is there."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from agentrl.benches import load_bench
from agentrl.benches.minihif import Rule, is_held_out, permitted_words, system_reward, user_reward
from agentrl.benches.minihif_optimum import optimum, rewards_of, upper_hull
from agentrl.core.bench import Task
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
    assert user_reward(ASKED, len(ASKED), response) == pytest.approx(expected)


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


def test_a_free_conflict_can_be_kept_at_no_cost() -> None:
    bench = load_bench(composed("algo=hipo", "bench.free=0.5").bench)
    tasks = bench.tasks("test")
    counted = Counter(task.data["conflict"] for task in tasks)
    assert counted["none"] == 100
    assert counted["free"] == pytest.approx(50, abs=15)
    for task in tasks:
        best = bench.rewards(task, bench.expert_response(task))
        assert best["sys"] == 1
        assert (best["user"] == 1) == (task.data["conflict"] != "graded")
        told = bench.rewards(task, " ".join((task.data["rule"].opener, *task.data["items"])))
        assert (told["sys"] < 1) == (task.data["conflict"] != "none")  # to say all that is named breaks the rule
        assert bench.groups(task)["conflict"] == task.data["conflict"]
    asked = next(task for task in tasks if task.data["conflict"] == "free")
    assert " of " in asked.data["user"]
    # Two of three wanted words: 2/3; all five named: three count, one is a greeting too much.
    assert user_reward(("ant", "cat", "cow", "dog", "hen"), 3, "sure cat cow") == pytest.approx(2 / 3)
    assert user_reward(("ant", "cat", "cow", "dog", "hen"), 3, "ant cat cow dog hen") == pytest.approx(3 / 4)


def test_without_free_conflicts_the_draw_is_as_before(bench) -> None:
    first, second = bench.tasks("test")[:2]
    assert (first.data["kind"], second.data["kind"]) == ("conflict", "aligned")
    assert all(task.data["count"] == len(task.data["items"]) for task in bench.tasks("train"))


# -- the optimum -------------------------------------------------------------------------------------------------------


def test_the_hull_by_hand() -> None:
    points = [(1.0, 0.4), (0.825, 0.7), (0.3, 1.0), (0.3, 0.9), (0.0, 1.0), (0.7, 0.4), (0.6, 0.75)]
    # From (.825, .7) to (.3, 1) r_sys costs .571; (.6, .75) lies below that edge.
    assert upper_hull(points) == [(0.3, 1.0), (0.825, 0.7), (1.0, 0.4)]


def test_the_optimum_of_one_prompt_by_hand() -> None:
    """BAN with two of four words banned: the user loses a quarter for each banned word that is left out."""
    task = Task("t", [], [], "", "", {"rule": BAN, "items": ASKED, "count": 4})
    hull = [number for point in upper_hull(rewards_of(task)) for number in point]
    assert hull == pytest.approx([0.3, 1.0, 0.825, 0.75, 1.0, 0.5])
    found = optimum([task], 0.9)
    assert found is not None
    assert (found.r_sys, found.multiplier) == pytest.approx((0.9, 0.25 / 0.175))
    assert found.r_user == pytest.approx(0.75 - 0.25 * 0.075 / 0.175)
    assert found.distance(0.9 + 0.03, found.r_user - 0.04) == pytest.approx(0.05)
    slack = optimum([task], 0.2)
    assert slack is not None
    assert (slack.r_sys, slack.r_user, slack.multiplier) == pytest.approx((0.3, 1.0, 0.0))
    assert optimum([task], 1.01) is None


@pytest.mark.parametrize("tau", [0.7, 0.85, 0.95])
@pytest.mark.parametrize("free", [0.0, 0.5])
def test_the_optimum_is_that_of_the_dual_problem_and_no_reply_beats_its_type(tau: float, free: float) -> None:
    """Strong duality: min over lambda of mean max (r_user + lambda r_sys) - lambda tau, over all sets of words."""
    bench = load_bench(composed("algo=hipo", f"bench.free={free}", "bench.test_tasks=12").bench)
    tasks = bench.tasks("test")
    points = []
    for task in tasks:
        items = (*task.data["items"], "yak", "well")
        replies = [" ".join(words) for n in range(len(items) + 1) for words in itertools.combinations(items, n)]
        replies += [f"{task.data['rule'].opener} {reply}" for reply in replies]
        graded = [bench.rewards(task, reply) for reply in replies]
        points.append([(one["sys"], one["user"]) for one in graded])
    found = optimum(tasks, tau)
    assert found is not None

    def dual(price: float) -> float:
        return sum(max(u + price * s for s, u in options) for options in points) / len(points) - price * tau

    assert dual(found.multiplier) == pytest.approx(found.r_user - found.multiplier * (tau - found.r_sys), abs=1e-9)
    assert all(dual(found.multiplier) <= dual(step / 20) + 1e-9 for step in range(100))
    assert found.r_sys == pytest.approx(tau) or found.multiplier == 0
