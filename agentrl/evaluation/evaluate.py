"""Evaluate a policy on a bench and write every item to a file. results.py summarises the items."""

from __future__ import annotations

import zlib
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed

from agentrl.config.schema import Eval
from agentrl.core.bench import Bench, Score, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding, Episode, RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.judge import Judge
from agentrl.core.stop import StopRequest, leave_if_asked
from agentrl.core.trajectory import Trajectory
from agentrl.evaluation.grading import missing_text, score_episodes
from agentrl.evaluation.results import Item, count_missing_items, count_missing_verdicts, played_items
from agentrl.rollout.preparation import prepare_tasks
from agentrl.store.run import RunDirectory


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
    """Roll out and score `tasks`, `config.samples` times each; return the items that count.

    Items are written to eval/<phase>.jsonl. `judge` grades what a suite of instruction hierarchies leaves open. A batch
    is not played again if the file holds all of its items. Every batch has its own seed, and a batch that was
    interrupted is played again as a whole. So a killed evaluation continues with the same items, sampled ones too.
    Several processes share a batch.

    An item that an endpoint did not play is missing, and its line gives the reason. The next evaluation plays only
    these items again.

    Raises:
        Interrupted: a signal asked to stop.
        UserError: no item could be played.
    """
    file = ItemFile(run, phase)
    decoding = Decoding(config.temperature, config.top_p)
    every = [(task, sample) for task in tasks for sample in range(config.samples)]
    unprepared: dict[str, str] = {}
    if any(file.lacks(task.id, sample) for task, sample in every):
        directory = run.path / "memory" / phase
        ready, unprepared = prepare_tasks(bench, tasks, engine, decoding, config.batch, directory)
        by_id = {task.id: task for task in ready}
        every = [(by_id.get(task.id, task), sample) for task, sample in every]
    label = f"evaluate {phase}"
    console.start(label, len(every), len(file.played))
    seed = run.config().seed
    state = PartialState()
    size = config.batch * state.num_processes
    for start in range(0, len(every), size):
        share = file.to_play(every[start : start + size])
        if not share:
            continue
        leave_if_asked(stop)
        set_seed((zlib.crc32(f"{seed} {phase} {start}".encode()) >> 1) + state.process_index)
        file.keep([missing_record(task, n, unprepared[task.id], []) for task, n in share if task.id in unprepared])
        share = [(task, sample) for task, sample in share if task.id not in unprepared]
        if not share:
            continue
        mine = share[state.process_index :: state.num_processes]
        # Processes exchange data while they play, so each plays equally many episodes; the surplus does not count.
        width = -(-len(share) // state.num_processes)
        episodes = [Episode(task, bench.environment(task)) for task, _ in mine + share[: width - len(mine)]]
        trajectories = engine.rollout(episodes, decoding)[: len(mine)]
        file.keep(gather_object(_lines(bench, judge, mine, trajectories)))
        console.update(label, len(file.played), progress(file.played, bench.solve_metric), line=True)
    file.close()
    console.finish(label)
    for text in describe_missing_verdicts(file.played):
        console.say(f"warning: {label}: {text}")
    if every and not file.played:
        reason = next(iter(count_missing_items(file.lines.values())))
        raise UserError(f"none of {len(every)} items was played: {reason}; the same command tries them again")
    return file.played


def describe_missing_verdicts(items: list[Item]) -> list[str]:
    """Return a text for the rewards whose verdicts did not come. Rewards with equal counts share one text."""
    lacking: dict[tuple[int, int], list[str]] = {}
    for name, counts in count_missing_verdicts(items).items():
        lacking.setdefault(counts, []).append(name)
    return [missing_text(", ".join(names), missing, asked) for (missing, asked), names in lacking.items()]


class ItemFile:
    """The items in eval/<phase>.jsonl: the last attempt of every item."""

    def __init__(self, run: RunDirectory, phase: str) -> None:
        self._run, self._path = run, run.eval_dir / f"{phase}.jsonl"
        written = list(run.records(self._path))
        self.lines: dict[tuple[str, int], Item] = {(one["id"], one["sample"]): one for one in written}
        self._repeated = len(self.lines) < len(written)  # an evaluation that was stopped has tried items again

    @property
    def played(self) -> list[Item]:
        return played_items(self.lines.values())

    def lacks(self, name: str, sample: int) -> bool:
        """Check whether an item still has to be played."""
        line = self.lines.get((name, sample))
        return line is None or "missing" in line

    def to_play(self, share: list[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """Return the part of a batch to play: nothing, all of it, or the items that an endpoint did not play before."""
        left = [(task, sample) for task, sample in share if self.lacks(task.id, sample)]
        all_tried = all((task.id, sample) in self.lines for task, sample in share)
        return left if all_tried or not left else share

    def keep(self, new: list[Item]) -> None:
        """Add lines, also new ones for items that were missing; only one process writes them."""
        wanted = [line for line in new if self.lacks(line["id"], line["sample"])]
        self._repeated |= any((line["id"], line["sample"]) in self.lines for line in wanted)
        self.lines |= {(line["id"], line["sample"]): line for line in wanted}
        if PartialState().is_main_process:
            for line in wanted:
                self._run.append(self._path, line)

    def close(self) -> None:
        """Leave one line of each item in the file. Until then its last line counts."""
        if self._repeated and PartialState().is_main_process:
            self._run.replace_records(self._path, list(self.lines.values()))


def _lines(
    bench: Bench, judge: Judge | None, mine: list[tuple[Task, int]], trajectories: list[Trajectory]
) -> list[Item]:
    """Return a line for each episode: its score, or the reason why an endpoint did not play it."""
    whole = [(task, one) for (task, _), one in zip(mine, trajectories, strict=True) if one.failure is None]
    graded = iter(score_episodes(bench, judge, [task for task, _ in whole], [one for _, one in whole]))
    return [
        item_record(next(graded), task, sample, one)
        if one.failure is None
        else missing_record(task, sample, one.failure, one.messages)
        for (task, sample), one in zip(mine, trajectories, strict=True)
    ]


def missing_record(task: Task, sample: int, reason: str, messages: list[dict[str, Any]]) -> Item:
    """Return the line of an item that was not played, with the messages until then."""
    return {"id": task.id, "sample": sample, "missing": reason, "messages": messages}


def progress(items: list[Item], metric: str) -> str:
    """Return the mean of `metric` so far, computed as in `item_values`; empty if no item has it."""
    if all(item["metrics"].get(metric) is None for item in items):
        return ""
    known = [value for item in items if (value := item["metrics"].get(metric, 0.0)) is not None]
    return f"{metric} {sum(known) / len(known):.3f}"


def item_record(score: Score, task: Task, sample: int, trajectory: Trajectory) -> Item:
    """Return one line of eval/*.jsonl. Truncation and tool errors are kept apart from the score."""
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
