"""Evaluation of a policy on a bench: every item to a file, intervals from the items."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from agentrl.benches.base import Bench, Task
from agentrl.config.schema import Eval
from agentrl.console import RunConsole
from agentrl.rollout.engine import Decoding, Episode, RolloutEngine
from agentrl.run import RunDirectory
from agentrl.stats import Interval, mean_interval, paired_difference
from agentrl.trainers.callbacks import StopRequest
from agentrl.trajectory import Trajectory

Item = dict[str, Any]


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
) -> list[Item]:
    """Roll out and score `tasks`, `config.samples` times each; items land in eval/<phase>.jsonl.

    An item that the file holds already is not played again; several processes share the rest.
    Raises Interrupted on a stop request.
    """
    path = run.eval_dir / f"{phase}.jsonl"
    items: list[Item] = run.records(path)
    done = {(item["id"], item["sample"]) for item in items}
    todo = [(task, sample) for task in tasks for sample in range(config.samples) if (task.id, sample) not in done]
    label = f"evaluate {phase}"
    console.start(label, len(items) + len(todo), len(items))
    state = PartialState()
    size = config.batch * state.num_processes
    for start in range(0, len(todo), size):
        if stop.anywhere():
            raise Interrupted
        share = todo[start : start + size]
        mine = share[state.process_index :: state.num_processes]
        # The engine communicates: every process plays equally many episodes, some of which do not count.
        width = -(-len(share) // state.num_processes)
        episodes = [Episode(task, bench.environment(task)) for task, _ in mine + share[: width - len(mine)]]
        trajectories = engine.rollout(episodes, Decoding(config.temperature))[: len(mine)]
        played = [
            item_record(bench, task, sample, trajectory)
            for (task, sample), trajectory in zip(mine, trajectories, strict=True)
        ]
        for item in gather_object(played):
            items.append(item)
            if state.is_main_process:
                run.append(path, item)
        solved = mean_interval([item["metrics"].get(bench.solve_metric, 0.0) for item in items]).mean
        console.update(label, len(items), f"{bench.solve_metric} {solved:.3f}", line=True)
    console.finish(label)
    return items


def item_record(bench: Bench, task: Task, sample: int, trajectory: Trajectory) -> Item:
    """One line of eval/*.jsonl. Truncation and tool errors are kept apart from the score."""
    score = bench.score(task, trajectory)
    return {
        "id": task.id,
        "sample": sample,
        "cluster": score.cluster,
        "metrics": score.metrics,
        "truncated": trajectory.truncated,
        "calls": len(trajectory.calls),
        "tool_errors": sum(call.error for call in trajectory.calls),
        "turns": trajectory.num_turns,
        "tokens": sum(trajectory.policy_mask),
        "messages": trajectory.messages,
    }


def per_item(items: list[Item], metric: str) -> dict[str, float]:
    """Mean of a metric over an item's samples; a sample without it counts 0, as the official scorers count it."""
    sums: dict[str, list[float]] = {}
    for item in items:
        sums.setdefault(item["id"], []).append(item["metrics"].get(metric, 0.0))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def summarise(before: list[Item], after: list[Item]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The `eval` entry of summary.json: 95% intervals clustered by item cluster, the difference paired by item."""
    metrics = sorted({name for item in [*before, *after] for name in item["metrics"]})
    clusters = {item["id"]: item["cluster"] for item in [*before, *after]}
    summary: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for phase, items in (("before", before), ("after", after)):
        if items:
            summary[phase] = {name: interval_of(per_item(items, name), clusters).as_dict() for name in metrics}
    if before and after:
        summary["difference"] = {
            name: paired_difference(per_item(before, name), per_item(after, name), clusters).as_dict()
            for name in metrics
        }
    return summary


def interval_of(values: dict[str, float], clusters: dict[str, str]) -> Interval:
    """Clustered 95% interval of a per-item metric."""
    return mean_interval(list(values.values()), [clusters[name] for name in values])
