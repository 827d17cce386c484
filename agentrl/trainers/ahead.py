"""rollout.ahead=1: the rollout batch of a step is sampled while the batch before it trains.

    batch      sampled with the weights before
    0          batch 0
    n >= 1     batch n - 1

`objectives.policy.truncated_weights` corrects for it. A checkpoint holds the batch that was sampled ahead: what sampled
it is not there any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentrl.core.trajectory import Component, ToolCall, Trajectory
from agentrl.rollout.playing import Playing

TOKENS = ("prompt_ids", "completion_ids", "policy_mask", "turn", "component")


@dataclass
class Batch:
    """The episodes of one rollout batch on this process."""

    step: int  # updates before it trains
    weights: int  # updates of the weights that sample it
    rows: list[int]  # places of its tasks
    playing: Playing | None = None
    trajectories: list[Trajectory] | None = None  # None until they are waited for

    def wait(self, progress: Callable[[int], None]) -> list[Trajectory]:
        """Its trajectories. Raises what went wrong."""
        if self.trajectories is None:
            assert self.playing is not None
            self.trajectories = self.playing.result(progress)
        return self.trajectories


class Ahead:
    """Hands out the rollout batch of the present step of `trainer`, and has the next one sampled."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._next: Batch | None = None

    def take(self, rows: list[int]) -> tuple[list[Trajectory], int]:
        """The batch of the present step, whose tasks are at `rows`, and how many updates its weights are behind."""
        trainer = self._trainer
        step = trainer.state.global_step
        batch = self._next or self._begin(step, rows)
        if (batch.step, batch.rows) != (step, rows):
            raise RuntimeError(f"sampled ahead were tasks {batch.rows} of step {batch.step}, not {rows} of step {step}")
        trajectories = batch.wait(trainer.show_rollout)
        following = step + trainer.args.steps_per_generation
        over = following >= trainer.state.max_steps
        self._next = None if over else self._begin(following, self._rows_at(following))
        return trajectories, step - batch.weights

    def _begin(self, step: int, rows: list[int]) -> Batch:
        """Have the weights of now sample the batch that trains at `step`."""
        trainer = self._trainer
        trainer.rollout_step = step
        episodes = trainer.episodes([trainer.tasks[row] for row in rows])
        return Batch(step, trainer.state.global_step, rows, trainer.engine.begin(episodes))

    def _rows_at(self, step: int) -> list[int]:
        """The tasks of this process in the rollout batch at `step`."""
        trainer = self._trainer
        rows = trainer.order.rollout_batch(step // trainer.args.steps_per_generation)
        share = len(rows) // trainer.accelerator.num_processes
        begin: int = trainer.accelerator.process_index * share
        return list(rows[begin : begin + share])

    def save(self, checkpoint: Path) -> None:
        """Wait for the batch that is being sampled, if there is one, and write it into a checkpoint."""
        batch = self._next
        if batch is not None:
            played = [_plain(one) for one in batch.wait(self._trainer.show_rollout)]
            checkpoint.mkdir(parents=True, exist_ok=True)
            content = {"step": batch.step, "weights": batch.weights, "rows": batch.rows, "played": played}
            torch.save(content, self._file(checkpoint))

    def load(self, checkpoint: Path) -> None:
        """Go on with the batch in a checkpoint, if it holds one; the last checkpoint of a run holds none."""
        file = self._file(checkpoint)
        if file.exists():
            saved: dict[str, Any] = torch.load(file, weights_only=True)
            played = [_trajectory(one) for one in saved["played"]]
            self._next = Batch(saved["step"], saved["weights"], saved["rows"], trajectories=played)

    def _file(self, checkpoint: Path) -> Path:
        return checkpoint / f"ahead-{self._trainer.accelerator.process_index}.pt"

    def give_up(self) -> None:
        """End a batch that nobody will ask for."""
        if self._next is not None and self._next.playing is not None:
            self._next.playing.give_up()
        self._next = None


def _plain(played: Trajectory) -> dict[str, Any]:
    """A trajectory as tensors and plain values, which a file holds without pickled classes."""
    content = dict(vars(played), calls=[dict(vars(call)) for call in played.calls])
    content |= {name: torch.tensor(content[name], dtype=torch.int32) for name in TOKENS}
    if played.logprobs is not None:
        content["logprobs"] = torch.tensor(played.logprobs, dtype=torch.float64)
    return content


def _trajectory(content: dict[str, Any]) -> Trajectory:
    """What `_plain` was given."""
    lists = {name: value.tolist() for name, value in content.items() if isinstance(value, torch.Tensor)}
    lists["component"] = [Component(kind) for kind in lists["component"]]
    calls = [ToolCall(**call) for call in content["calls"]]
    return Trajectory(**{**content, **lists, "calls": calls})
