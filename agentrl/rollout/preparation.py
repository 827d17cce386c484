"""Prepares the tasks of a bench whose tasks build on earlier conversations, by playing those conversations first."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from agentrl.core.bench import Bench, Finished, Preparing, Task
from agentrl.core.engine import Decoding, Episode, RolloutEngine


def prepare_tasks(
    bench: Bench, tasks: list[Task], engine: RolloutEngine, decoding: Decoding, batch: int, directory: Path
) -> tuple[list[Task], dict[str, str]]:
    """Let the bench prepare its tasks, if it implements `Preparing`. Each process plays `batch` episodes at a time.

    Return the prepared tasks, and for each task that could not be prepared the reason, by task id.
    """
    if not isinstance(bench, Preparing):
        return tasks, {}
    state = PartialState()
    reasons = ["another process met the reason"]

    def play(wanted: list[Task], finished: Finished) -> None:
        size = batch * state.num_processes
        for start in range(0, len(wanted), size):
            share = wanted[start : start + size]
            mine = share[state.process_index :: state.num_processes]
            # The engines of all processes communicate, so each must play the same number of episodes. Some are fillers.
            width = -(-len(share) // state.num_processes)
            filled = (mine + share * width)[:width]
            episodes = [Episode(task, bench.environment(task)) for task in filled]
            for task, episode, trajectory in zip(mine, episodes, engine.rollout(episodes, decoding), strict=False):
                if trajectory.failure is None:
                    finished(task, episode.environment)
                else:
                    reasons.append(trajectory.failure)
        state.wait_for_everyone()

    ready = bench.prepare(tasks, play, directory)
    known = {task.id for task in ready}
    why = f"a conversation that it builds on was not played to its end: {reasons[-1]}"
    return ready, {task.id: why for task in tasks if task.id not in known}
