"""Summarise the items of an evaluation: metrics by item, intervals, breakdowns, and the change by training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from agentrl.core.stats import (
    are_shares,
    bootstrap_interval,
    linearised_macro,
    linearised_ratio,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    share_interval,
    t_interval,
)

Item = dict[str, Any]  # one line of eval/*.jsonl; "missing" gives the reason why an endpoint did not play the item
LINEARISED = ("call_error", "macro")  # only the mean of these metrics has a meaning, not the value of an item
Summary = dict[str, dict[str, dict[str, Any]]]  # phase -> metric -> interval


def played_items(lines: Iterable[Item]) -> list[Item]:
    """Return the items that count: those that were played to the end."""
    return [line for line in lines if "missing" not in line]


def count_missing_items(lines: Iterable[Item]) -> dict[str, int]:
    """Count the missing items by reason; the most frequent reason comes first."""
    return dict(Counter(line["missing"] for line in lines if "missing" in line).most_common())


def item_values(items: list[Item], solve_metric: str) -> dict[str, dict[str, float]]:
    """Return {metric: {item: value}}: the value of every metric for every item, averaged over the item's samples.

    A sample without the solve metric counts 0, as in the official scorers. A sample without another metric is not what
    that metric is about, and is left out. A metric that is None (a judge gave no verdict) is left out too, and so is an
    item without any other value; `missing/<metric>` is the share of such samples. `query_error` is the share of samples
    with a failed call. `call_error` is linearised: its mean is failed calls / calls.

    With n > 1 samples, of which some have the solve metric, there are pass@k and pass^k for k = 1, 2, 4, ... up to n,
    over the items with k verdicts; a sample passes if its solve metric is 1. If items belong to several suites, the
    mean of `macro` is the mean of the suites' solve rates.
    """
    samples: dict[str, list[Item]] = {}
    for item in items:
        samples.setdefault(item["id"], []).append(item)

    def mean_of(value: Callable[[Item], float | None]) -> dict[str, float]:
        known = {name: [one for one in map(value, tries) if one is not None] for name, tries in samples.items()}
        return {name: sum(one) / len(one) for name, one in known.items() if one}

    def metric(name: str) -> Callable[[Item], float | None]:
        return lambda item: item["metrics"].get(name, 0.0 if name == solve_metric else None)

    names = sorted({name for item in items for name in item["metrics"]})
    values = {name: mean_of(metric(name)) for name in names}
    for name in [name for name in names if any(item["metrics"].get(name, 0.0) is None for item in items)]:
        values[f"missing/{name}"] = mean_of(_missing(name))
    if any(item["calls"] for item in items):
        calls = {name: float(sum(item["calls"] for item in tries)) for name, tries in samples.items()}
        failed = {name: float(sum(item["tool_errors"] for item in tries)) for name, tries in samples.items()}
        values["call_error"] = linearised_ratio(failed, calls)
        values["query_error"] = mean_of(lambda item: float(item["tool_errors"] > 0))
    suites = {name: tries[0].get("groups", {}).get("suite", "") for name, tries in samples.items()}
    if solve_metric in values and len(set(suites.values())) > 1:
        values["macro"] = linearised_macro(values[solve_metric], suites)
    n = max(map(len, samples.values()), default=0)  # an endpoint may have refused some samples of an item
    verdicts = {
        name: [one for one in map(metric(solve_metric), tries) if one is not None] for name, tries in samples.items()
    }
    graded = solve_metric in names  # otherwise no judge was asked, and nothing is known of any sample
    for k in [2**power for power in range(n.bit_length())] if n > 1 and graded else []:
        attempts = {name: (len(own), sum(one >= 1 for one in own)) for name, own in verdicts.items() if len(own) >= k}
        values[f"pass@{k}"] = {name: pass_at_k(*counts, k) for name, counts in attempts.items()}
        values[f"pass^{k}"] = {name: pass_hat_k(*counts, k) for name, counts in attempts.items()}
    values["truncated"] = mean_of(lambda item: float(item["truncated"]))
    return values


def _missing(name: str) -> Callable[[Item], float | None]:
    """Return a metric: 1 for a sample without a verdict of `name`, None for one that `name` is not about."""
    return lambda item: float(item["metrics"][name] is None) if name in item["metrics"] else None


def count_missing_verdicts(items: Iterable[Item]) -> dict[str, tuple[int, int]]:
    """Return (missing, asked) for every metric that lacks some verdicts: the samples without one, and all samples."""
    found: dict[str, tuple[int, int]] = {}
    for item in items:
        for name, value in item["metrics"].items():
            missing, asked = found.get(name, (0, 0))
            found[name] = missing + (value is None), asked + 1
    return {name: counts for name, counts in found.items() if counts[0]}


def summarise(before: list[Item], after: list[Item], solve_metric: str) -> Summary:
    """Return the `eval` entry of summary.json: 95% intervals by item cluster, the difference paired by item."""
    clusters = {item["id"]: item["cluster"] for item in [*before, *after]}
    phases = {
        phase: item_values(items, solve_metric) for phase, items in (("before", before), ("after", after)) if items
    }
    names = dict.fromkeys(name for values in phases.values() for name in values)
    for values in phases.values():  # a metric that one phase never set is 0 there, as in a single sample
        for name in names:
            values.setdefault(name, dict.fromkeys(next(iter(values.values()), {}), 0.0))
    shares = {name: _is_share(name, phases.values(), solve_metric) for name in names}
    summary: Summary = {
        phase: {name: _cell(values[name], clusters, shares[name]) for name in names} for phase, values in phases.items()
    }
    if len(phases) == 2:
        first, second = phases["before"], phases["after"]
        summary["difference"] = {
            name: paired_difference(first[name], second[name], clusters, shares=shares[name]).as_dict()
            for name in names
        }
    return summary


def _is_share(name: str, phases: Iterable[dict[str, dict[str, float]]], solve_metric: str) -> bool:
    """Check whether a metric's mean lies in [0, 1]: all its values do, or it is linearised."""
    source = solve_metric if name == "macro" else name
    return name == "call_error" or all(are_shares(list(values[source].values())) for values in phases)


def summarise_groups(before: list[Item], after: list[Item], solve_metric: str) -> dict[str, dict[str, Summary]]:
    """Return the `by` entry of summary.json, {group: {value: what `summarise` gives for its items}}."""
    groups = sorted({pair for item in [*before, *after] for pair in item.get("groups", {}).items()})
    by: dict[str, dict[str, Summary]] = {}
    for group, value in groups:
        first, second = (
            [item for item in items if item.get("groups", {}).get(group) == value] for items in (before, after)
        )
        by.setdefault(group, {})[value] = summarise(first, second, solve_metric)
    return by


def _cell(values: dict[str, float], clusters: dict[str, str], share: bool) -> dict[str, Any]:
    """Return the clustered interval of a per-item metric, and the percentile bootstrap's over the same clusters."""
    labels = [clusters[name] for name in values]
    interval = (share_interval if share else t_interval)(list(values.values()), labels)
    resampled = bootstrap_interval(list(values.values()), labels, draws=2000).as_dict()
    lo, hi = resampled["lo"], resampled["hi"]
    if lo is None or hi is None or lo == hi or not interval.known:  # equal draws say nothing about the width
        return interval.as_dict() | {"bootstrap_lo": None, "bootstrap_hi": None}
    if share:  # linearised values may lie outside [0, 1]
        lo, hi = max(lo, 0.0), min(hi, 1.0)
    return interval.as_dict() | {"bootstrap_lo": lo, "bootstrap_hi": hi}
