"""Evaluation of a policy on a bench: every item to a file, intervals from the items."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed

from agentrl.benches.base import Bench, Score, Task
from agentrl.config.schema import Eval
from agentrl.console import RunConsole
from agentrl.judges.base import Judge
from agentrl.rewards.two_sided import scores
from agentrl.rollout.engine import Decoding, Episode, RolloutEngine
from agentrl.rollout.preparation import prepared
from agentrl.run import RunDirectory
from agentrl.stats import (
    Interval,
    linearised_macro,
    linearised_ratio,
    mean_interval,
    paired_difference,
    pass_at_k,
    pass_hat_k,
)
from agentrl.trainers.callbacks import StopRequest
from agentrl.trajectory import Trajectory

Item = dict[str, Any]
Summary = dict[str, dict[str, dict[str, float | int | None]]]  # phase -> metric -> interval


class Interrupted(Exception):
    """A signal asked to stop between two batches of episodes."""


def evaluate(
    engine: RolloutEngine,
    bench: Bench,
    tasks: list[Task],
    config: Eval,
    run: RunDirectory,
    phase: str,
    console: RunConsole,
    stop: StopRequest,
    judge: Judge | None = None,
) -> list[Item]:
    """Roll out and score `tasks`, `config.samples` times each; items land in eval/<phase>.jsonl.

    `judge` grades what a suite of instruction hierarchies leaves open. A batch whose items the file holds already is
    not played again. Every batch has a seed of its own and one that was cut short is played whole, so that a killed
    evaluation goes on to the same items, sampled ones too. Several processes share a batch.
    Raises Interrupted on a stop request.
    """
    path = run.eval_dir / f"{phase}.jsonl"
    items: list[Item] = run.records(path)
    done = {(item["id"], item["sample"]) for item in items}
    every = [(task, sample) for task in tasks for sample in range(config.samples)]
    if any((task.id, sample) not in done for task, sample in every):
        directory = run.path / "memory" / phase
        ready = prepared(bench, tasks, engine, Decoding(config.temperature), config.batch, directory)
        by_id = {task.id: task for task in ready}
        every = [(by_id[task.id], sample) for task, sample in every]
    label = f"evaluate {phase}"
    console.start(label, len(every), len(items))
    seed = run.config().seed
    state = PartialState()
    size = config.batch * state.num_processes
    for start in range(0, len(every), size):
        share = every[start : start + size]
        if all((task.id, sample) in done for task, sample in share):
            continue
        if stop.anywhere():
            raise Interrupted
        set_seed(zlib.crc32(f"{seed} {phase} {start}".encode()) >> 1, device_specific=True)
        mine = share[state.process_index :: state.num_processes]
        # The engine communicates: every process plays equally many episodes, some of which do not count.
        width = -(-len(share) // state.num_processes)
        episodes = [Episode(task, bench.environment(task)) for task, _ in mine + share[: width - len(mine)]]
        trajectories = engine.rollout(episodes, Decoding(config.temperature))[: len(mine)]
        graded = scores(bench, judge, [task for task, _ in mine], trajectories)
        played = [
            item_record(score, task, sample, trajectory)
            for score, (task, sample), trajectory in zip(graded, mine, trajectories, strict=True)
        ]
        for item in gather_object(played):
            if (item["id"], item["sample"]) in done:
                continue
            items.append(item)
            if state.is_main_process:
                run.append(path, item)
        solved = mean_interval([item["metrics"].get(bench.solve_metric, 0.0) or 0.0 for item in items]).mean
        console.update(label, len(items), f"{bench.solve_metric} {solved:.3f}", line=True)
    console.finish(label)
    return items


def item_record(score: Score, task: Task, sample: int, trajectory: Trajectory) -> Item:
    """One line of eval/*.jsonl. Truncation and tool errors are kept apart from the score."""
    return {
        "id": task.id,
        "sample": sample,
        "cluster": score.cluster,
        "groups": score.groups,
        "metrics": score.metrics,
        "truncated": trajectory.truncated,
        "calls": len(trajectory.calls),
        "tool_errors": sum(call.error for call in trajectory.calls),
        "turns": trajectory.num_turns,
        "tokens": sum(trajectory.policy_mask),
        "messages": trajectory.messages,
    }


def item_values(items: list[Item], solve_metric: str) -> dict[str, dict[str, float]]:
    """Every metric's value of every item, {metric: {item: value}}, the item's samples taken together.

    Scores are averaged over samples; a sample without a metric counts 0, as the official scorers count it. A
    metric that is None is missing (a judge gave no verdict): it is left out, and so is an item with nothing else.
    `query_error` is the share of samples with a failed call. `call_error` is linearised so that its mean is failed
    calls / calls. With n > 1 samples, pass@k and pass^k for k = 1, 2, 4, ... up to n: an attempt passes if its solve
    metric is 1. Where items belong to several suites, the mean of `macro` is the mean of the suites' solve rates.
    """
    samples: dict[str, list[Item]] = {}
    for item in items:
        samples.setdefault(item["id"], []).append(item)

    def mean_of(value: Callable[[Item], float | None]) -> dict[str, float]:
        known = {name: [one for one in map(value, tries) if one is not None] for name, tries in samples.items()}
        return {name: sum(one) / len(one) for name, one in known.items() if one}

    def metric(name: str) -> Callable[[Item], float | None]:
        return lambda item: item["metrics"].get(name, 0.0)

    names = sorted({name for item in items for name in item["metrics"]})
    values = {name: mean_of(metric(name)) for name in names}
    if any(item["calls"] for item in items):
        calls = {name: float(sum(item["calls"] for item in tries)) for name, tries in samples.items()}
        failed = {name: float(sum(item["tool_errors"] for item in tries)) for name, tries in samples.items()}
        values["call_error"] = linearised_ratio(failed, calls)
        values["query_error"] = mean_of(lambda item: float(item["tool_errors"] > 0))
    suites = {name: tries[0].get("groups", {}).get("suite", "") for name, tries in samples.items()}
    if solve_metric in values and len(set(suites.values())) > 1:
        values["macro"] = linearised_macro(values[solve_metric], suites)
    n = min(map(len, samples.values()), default=0)
    passed = {name: sum((t["metrics"].get(solve_metric) or 0.0) >= 1 for t in tries) for name, tries in samples.items()}
    for k in [2**power for power in range(n.bit_length())] if n > 1 else []:
        values[f"pass@{k}"] = {name: pass_at_k(len(samples[name]), passed[name], k) for name in samples}
        values[f"pass^{k}"] = {name: pass_hat_k(len(samples[name]), passed[name], k) for name in samples}
    return values


def summarise(before: list[Item], after: list[Item], solve_metric: str) -> Summary:
    """The `eval` entry of summary.json: 95% intervals clustered by item cluster, the difference paired by item."""
    clusters = {item["id"]: item["cluster"] for item in [*before, *after]}
    phases = {
        phase: item_values(items, solve_metric) for phase, items in (("before", before), ("after", after)) if items
    }
    names = dict.fromkeys(name for values in phases.values() for name in values)
    for values in phases.values():  # a metric that one phase never set is 0 there, as in a single sample
        for name in names:
            values.setdefault(name, dict.fromkeys(next(iter(values.values()), {}), 0.0))
    summary: Summary = {
        phase: {name: interval_of(values[name], clusters).as_dict() for name in names}
        for phase, values in phases.items()
    }
    if len(phases) == 2:
        first, second = phases["before"], phases["after"]
        summary["difference"] = {
            name: paired_difference(first[name], second[name], clusters).as_dict() for name in names
        }
    return summary


def summarise_groups(before: list[Item], after: list[Item], solve_metric: str) -> dict[str, dict[str, Summary]]:
    """The `by` entry of summary.json, {group: {value: what `summarise` gives for its items}}."""
    groups = sorted({pair for item in [*before, *after] for pair in item.get("groups", {}).items()})
    by: dict[str, dict[str, Summary]] = {}
    for group, value in groups:
        first, second = (
            [item for item in items if item.get("groups", {}).get(group) == value] for items in (before, after)
        )
        by.setdefault(group, {})[value] = summarise(first, second, solve_metric)
    return by


def interval_of(values: dict[str, float], clusters: dict[str, str]) -> Interval:
    """Clustered 95% interval of a per-item metric."""
    return mean_interval(list(values.values()), [clusters[name] for name in values])
