"""Load the tasks of a run, and check them before it begins: files, splits, and the metrics that constraints bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agentrl.benches import load_bench
from agentrl.config.algos.pact import Pact
from agentrl.config.benches import CustomBench
from agentrl.config.constraints import EpisodeConstraint
from agentrl.config.schema import Config
from agentrl.core.bench import Bench, Task
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory
from agentrl.traces.files import read_traces


def load_tasks(bench: Bench, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
    """Return the tasks of a split, or a seeded sample of `limit` of them.

    Raises:
        UserError: the split is empty, the data is bad, or two tasks share an id. An item is recorded, and an expert
            trace found, by the id of its task.
    """
    tasks = bench.tasks(split, limit, seed)
    if not tasks:
        raise UserError(f"bench={bench.name}: the {split} split has no task; give it one or more")
    counts = Counter(task.id for task in tasks)
    if shared := [name for name, count in counts.items() if count > 1]:
        raise UserError(
            f"bench={bench.name}: {counts[shared[0]]} tasks of the {split} split have the id {shared[0]!r}; "
            "results and traces are kept by id, so give each task one of its own"
        )
    return tasks


def check_tasks(config: Config) -> None:
    """Check that the files of bench and traces can be read, that no split is empty, that the tasks fill a batch,
    and that the bench has the metrics that constraints bound.

    A user's own Python file is not checked here; the run checks it.

    Raises:
        UserError: one of these is not so; the message is the bench's own if it has one.
    """
    if config.traces is not None:
        read_traces(Path(config.traces))
    if isinstance(config.bench, CustomBench):
        return
    bench, trains = load_bench(config.bench), config.algo.trains
    sizes = {split: bench.size(split) for split in (("train", "test") if trains else ("test",))}
    for split, size in sizes.items():
        if not size:
            bench.tasks(split)  # the bench may give a better reason
            raise UserError(
                f"bench.path={config.bench.path} leaves no row for the {split} split; name a file with more rows, or "
                "change bench.test_fraction"
            )
    prompts = config.trainer.prompts_per_batch
    if trains and config.algo.rollouts and sizes["train"] < prompts:
        raise UserError(f"trainer.prompts_per_batch={prompts}: there are {sizes['train']} training tasks; lower it")
    if isinstance(config.algo, Pact) and config.algo.constraints:
        check_measures(config.algo.constraints, bench, bench.tasks("train")[0])


def check_measures(constraints: Sequence[EpisodeConstraint], bench: Bench, task: Task) -> None:
    """Raise UserError if the bench lacks a metric that one of PACT's constraints bounds.

    The score of an empty episode of `task` shows which metrics the bench has.
    """
    if not constraints:
        return
    known = {"calls", *bench.score(task, Trajectory(task.id, [], [], [], [], [], [], [])).metrics}
    for index, one in enumerate(constraints):
        if one.measure not in known:
            raise UserError(
                f"algo.constraints.{index}.measure={one.measure}: bench={bench.name} has no such measure; "
                f"choose from {', '.join(sorted(known))}"
            )
