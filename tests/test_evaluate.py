"""Summaries of evaluated items: samples, failed calls, pass@k, breakdowns."""

from __future__ import annotations

from typing import Any

import pytest

from agentrl.results import item_values, summarise, summarise_groups


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


def test_no_calls_and_one_sample_leave_those_metrics_out() -> None:
    assert set(item_values([item("a", 0, 1.0, calls=0)], "solve")) == {"solve", "recall", "truncated"}
    assert not any(item_values([], "solve").values())


def test_summary_is_paired_and_a_metric_never_set_counts_zero() -> None:
    before = [{**entry, "metrics": {}} for entry in ITEMS[:1]]
    summary = summarise(before, ITEMS[:1], "solve")
    assert summary["before"]["solve"]["mean"] == 0 and summary["difference"]["solve"]["mean"] == 1
    assert set(summary) == {"before", "after", "difference"} and summarise([], [], "solve") == {}


def test_breakdown_by_group() -> None:
    tasks = [item("a", 0, 1.0), item("b", 0, 0.0), item("c", 0, 1.0, hops="2")]
    by = summarise_groups([], tasks, "solve")
    assert set(by) == {"hops"} and set(by["hops"]) == {"1", "2"}
    assert by["hops"]["1"]["after"]["solve"]["mean"] == 0.5 and by["hops"]["1"]["after"]["solve"]["n"] == 2
    assert by["hops"]["2"]["after"]["solve"]["mean"] == 1
    old = [{key: value for key, value in tasks[0].items() if key != "groups"}]
    assert summarise_groups(old, [], "solve") == {}
