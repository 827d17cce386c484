"""What some benches play before their tasks can be asked: conversations whose outcome the tasks build on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from accelerate import PartialState

from agentrl.core.bench import Bench, Environment, Task
from agentrl.core.engine import Decoding, Episode, RolloutEngine

Finished = Callable[[Task, Environment], None]
Play = Callable[[list[Task], Finished], None]  # plays one episode of each task, calls `finished` for those played


@runtime_checkable
class Preparing(Protocol):
    """A bench whose tasks need the policy to play something first."""

    def prepare(self, tasks: list[Task], play: Play, directory: Path) -> list[Task]:
        """The tasks as they are to be asked; what was played stays in `directory` and is not played again.

        A task is left out where an endpoint did not play what it builds on.
        """
        ...


def prepared(
    bench: Bench, tasks: list[Task], engine: RolloutEngine, decoding: Decoding, batch: int, directory: Path
) -> tuple[list[Task], dict[str, str]]:
    """The tasks after their bench has prepared them, if it wants to; `batch` episodes a process at a time.

    Beside them, by their ids, why some cannot be asked.
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
            # The engine communicates: every process plays equally many episodes, some of which do not count.
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
    why = f"a conversation that it builds on was not held: {reasons[-1]}"
    return ready, {task.id: why for task in tasks if task.id not in known}
