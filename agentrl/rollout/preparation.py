"""What some benches play before their tasks can be asked: conversations whose outcome the tasks build on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from accelerate import PartialState

from agentrl.benches.base import Bench, Environment, Task
from agentrl.rollout.engine import Decoding, Episode, RolloutEngine

Finished = Callable[[Task, Environment], None]
Play = Callable[[list[Task], Finished], None]  # plays one episode of each task, then calls `finished` for each


@runtime_checkable
class Preparing(Protocol):
    """A bench whose tasks need the policy to play something first."""

    def prepare(self, tasks: list[Task], play: Play, directory: Path) -> list[Task]:
        """The tasks as they are to be asked; what was played stays in `directory` and is not played again."""
        ...


def prepared(
    bench: Bench, tasks: list[Task], engine: RolloutEngine, decoding: Decoding, batch: int, directory: Path
) -> list[Task]:
    """The tasks after their bench has prepared them, if it wants to; `batch` episodes a process at a time."""
    if not isinstance(bench, Preparing):
        return tasks
    state = PartialState()

    def play(wanted: list[Task], finished: Finished) -> None:
        size = batch * state.num_processes
        for start in range(0, len(wanted), size):
            share = wanted[start : start + size]
            mine = share[state.process_index :: state.num_processes]
            # The engine communicates: every process plays equally many episodes, some of which do not count.
            width = -(-len(share) // state.num_processes)
            filled = (mine + share * width)[:width]
            episodes = [Episode(task, bench.environment(task)) for task in filled]
            engine.rollout(episodes, decoding)
            for task, episode in zip(mine, episodes, strict=False):
                finished(task, episode.environment)
        state.wait_for_everyone()

    return bench.prepare(tasks, play, directory)
