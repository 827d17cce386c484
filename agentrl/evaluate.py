"""Evaluation of a policy on a bench: every item to a file; what the items say as a whole is in results.py."""

from __future__ import annotations

import zlib

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed

from agentrl.benches.base import Bench, Score, Task
from agentrl.config.schema import Eval
from agentrl.console import RunConsole
from agentrl.judges.base import Judge
from agentrl.results import Item
from agentrl.rewards.two_sided import scores
from agentrl.rollout.engine import Decoding, Episode, RolloutEngine
from agentrl.rollout.preparation import prepared
from agentrl.run import RunDirectory
from agentrl.stats import mean_interval
from agentrl.trainers.callbacks import StopRequest
from agentrl.trajectory import Trajectory


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
    decoding = Decoding(config.temperature, config.top_p)
    items: list[Item] = run.records(path)
    done = {(item["id"], item["sample"]) for item in items}
    every = [(task, sample) for task in tasks for sample in range(config.samples)]
    if any((task.id, sample) not in done for task, sample in every):
        directory = run.path / "memory" / phase
        ready = prepared(bench, tasks, engine, decoding, config.batch, directory)
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
        set_seed((zlib.crc32(f"{seed} {phase} {start}".encode()) >> 1) + state.process_index)
        mine = share[state.process_index :: state.num_processes]
        # The engine communicates: every process plays equally many episodes, some of which do not count.
        width = -(-len(share) // state.num_processes)
        episodes = [Episode(task, bench.environment(task)) for task, _ in mine + share[: width - len(mine)]]
        trajectories = engine.rollout(episodes, decoding)[: len(mine)]
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
        "tokens": trajectory.sampled_tokens,
        "messages": trajectory.messages,
    }
