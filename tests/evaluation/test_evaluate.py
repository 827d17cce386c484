"""Summaries of evaluated items: samples, failed calls, pass@k, breakdowns."""

from __future__ import annotations

from typing import Any

import pytest

from agentrl.evaluation.grading import missing_text
from agentrl.evaluation.results import count_missing_verdicts, item_values, summarise, summarise_groups
from agentrl.report.table import result_text


def item(name: str, sample: int, solved: float, calls: int = 2, failed: int = 0, hops: str = "1") -> dict[str, Any]:
    return {
        "id": name,
        "sample": sample,
        "cluster": name,
        "groups": {"hops": hops},
        "metrics": {"solve": solved, "recall": solved / 2},
        "calls": calls,
        "tool_errors": failed,
        "truncated": sample == 1,
    }


ITEMS = [item("a", 0, 1.0), item("a", 1, 0.5, calls=4, failed=1), item("b", 0, 1.0, hops="2"), item("b", 1, 1.0, 0)]


def test_values_of_an_item_are_over_its_samples() -> None:
    values = item_values(ITEMS, "solve")
    assert values["solve"] == {"a": 0.75, "b": 1.0} and values["recall"] == {"a": 0.375, "b": 0.5}
    # only a full mark passes: one of two samples of a, both of b
    assert values["pass@1"] == values["pass^1"] == {"a": 0.5, "b": 1.0}
    assert values["pass@2"] == {"a": 1.0, "b": 1.0} and values["pass^2"] == {"a": 0.0, "b": 1.0}
    assert values["query_error"] == {"a": 0.5, "b": 0.0} and values["truncated"] == {"a": 0.5, "b": 0.5}
    assert sum(values["call_error"].values()) / 2 == pytest.approx(1 / 8)  # 1 of 8 calls


def test_replies_that_nobody_graded_have_no_pass_at_k() -> None:
    ungraded = [{**entry, "metrics": {"empty": 0.0}} for entry in ITEMS]
    assert not [name for name in item_values(ungraded, "solve") if name.startswith("pass")]


def test_no_calls_and_one_sample_leave_those_metrics_out() -> None:
    assert set(item_values([item("a", 0, 1.0, calls=0)], "solve")) == {"solve", "recall", "truncated"}
    assert not any(item_values([], "solve").values())


def test_summary_is_paired_and_a_metric_never_set_counts_zero() -> None:
    before = [{**entry, "metrics": {}} for entry in ITEMS[:1]]
    summary = summarise(before, ITEMS[:1], "solve")
    assert summary["before"]["solve"]["mean"] == 0 and summary["difference"]["solve"]["mean"] == 1
    assert set(summary) == {"before", "after", "difference"} and summarise([], [], "solve") == {}


def judged(name: str, sample: int, verdict: float | None) -> dict[str, Any]:
    return {**item(name, sample, 0.0, calls=0), "metrics": {"r_sys": verdict}}


def test_a_missing_verdict_is_no_failed_attempt() -> None:
    verdicts = {"a": [1, None, None, 1], "b": [0, 1, 0, 1], "c": [None] * 4}
    values = item_values([judged(n, i, one) for n, tries in verdicts.items() for i, one in enumerate(tries)], "r_sys")
    assert values["r_sys"] == {"a": 1.0, "b": 0.5}
    # a has two attempts, both passed: nothing is known of four; c has none
    assert values["pass@1"] == {"a": 1.0, "b": 0.5} and values["pass^2"] == {"a": 1.0, "b": pytest.approx(1 / 6)}
    assert set(values["pass@4"]) == {"b"}
    assert values["missing/r_sys"] == {"a": 0.5, "b": 0.0, "c": 1.0}


def test_a_sample_that_an_endpoint_refused_takes_no_pass_at_k_from_the_others() -> None:
    tries = {"a": [1, 0, 0, 1], "b": [1], "c": [0, 1, 0]}
    values = item_values([judged(n, i, one) for n, own in tries.items() for i, one in enumerate(own)], "r_sys")
    assert values["pass@1"] == pytest.approx({"a": 0.5, "b": 1.0, "c": 1 / 3})
    assert values["pass@2"] == pytest.approx({"a": 5 / 6, "c": 2 / 3})  # 1 - C(2, 2) / C(4, 2), 1 - C(2, 2) / C(3, 2)
    assert values["pass@4"] == {"a": 1.0} and values["pass^4"] == {"a": 0.0}


def test_how_many_verdicts_are_missing_is_in_the_summary_and_in_tables() -> None:
    items = [judged(str(i), 0, None if i % 3 else 1.0) for i in range(30)]
    summary = summarise([], items, "r_sys")
    assert (summary["after"]["r_sys"]["mean"], summary["after"]["r_sys"]["n"]) == (1.0, 10)
    assert summary["after"]["missing/r_sys"]["mean"] == pytest.approx(2 / 3)
    text = result_text({"eval": summary})
    assert "missing/r_sys" in text and "0.667" in text
    assert "20 of 30 replies have no r_sys (67%)" in missing_text("r_sys", *count_missing_verdicts(items)["r_sys"])
    none = summarise([], [judged("a", 0, None)], "r_sys")["after"]["r_sys"]
    assert (none["mean"], none["lo"], none["n"]) == (None, None, 0)


def test_a_metric_is_a_mean_over_the_items_that_it_is_about() -> None:
    items = [item(str(i), 0, 1.0) for i in range(6)]
    for one in items[:2]:
        one["metrics"]["over_refusal"] = 1.0
    found = summarise([], items, "solve")["after"]["over_refusal"]
    assert (found["mean"], found["n"]) == (1.0, 2)


def test_intervals_of_shares_and_of_their_differences_stay_in_range() -> None:
    """0 of 20 is no proof of never, and few items give no bounds outside of what can be."""
    for count in (3, 5, 20):
        for solved in (0, 1, count):
            before = [item(str(i), 0, float(i < solved), calls=0) for i in range(count)]
            after = [item(str(i), 0, 0.0, calls=2, failed=i % 2) for i in range(count)]
            summary = summarise(before, after, "solve")
            for phase, lowest in (("before", 0), ("after", 0), ("difference", -1)):
                for name, cell in summary[phase].items():
                    assert lowest <= cell["lo"] < cell["hi"] <= 1, (count, solved, phase, name, cell)
    few = summarise([], [item("a", 0, 1.0), item("b", 0, 0.0)], "solve")["after"]["solve"]
    assert (few["lo"], few["hi"], few["bootstrap_lo"]) == (None, None, None)
    assert "0.500 [too few]" in result_text({"eval": {"after": {"solve": few}}})
    rewards = [{**item(str(i), 0, 1.0), "metrics": {"solve": 1.0, "reward": 3.0 * (i % 2)}} for i in range(8)]
    assert summarise([], rewards, "solve")["after"]["reward"]["hi"] > 2  # no share: nothing is cut


def test_breakdown_by_group() -> None:
    tasks = [item("a", 0, 1.0), item("b", 0, 0.0), item("c", 0, 1.0, hops="2")]
    by = summarise_groups([], tasks, "solve")
    assert set(by) == {"hops"} and set(by["hops"]) == {"1", "2"}
    assert by["hops"]["1"]["after"]["solve"]["mean"] == 0.5 and by["hops"]["1"]["after"]["solve"]["n"] == 2
    assert by["hops"]["2"]["after"]["solve"]["mean"] == 1
    old = [{key: value for key, value in tasks[0].items() if key != "groups"}]
    assert summarise_groups(old, [], "solve") == {}
