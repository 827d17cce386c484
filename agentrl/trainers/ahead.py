"""rollout.ahead=1: the next rollout batch is sampled while the present one trains.

Batch 0 is sampled with the initial weights. Batch n >= 1 is sampled with the weights from before the updates on batch
n - 1. `objectives.policy.truncated_weights` corrects for the older weights. A checkpoint holds the batch that was
sampled ahead, since a resumed run no longer has the weights that sampled it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentrl.core.trajectory import Component, ToolCall, Trajectory
from agentrl.rollout.playing import Playing

TOKENS = ("prompt_ids", "completion_ids", "policy_mask", "turn", "component")
WRITTEN = ("messages", "calls")


@dataclass
class Batch:
    """The episodes of one rollout batch on this process."""

    step: int  # number of updates made before this batch trains
    weights: int  # number of updates in the weights that sample it
    rows: list[int]  # indices of its tasks
    playing: Playing | None = None
    trajectories: list[Trajectory] | None = None  # None until `wait` has returned them

    def wait(self, progress: Callable[[int], None]) -> list[Trajectory]:
        """Wait until the batch is played and return its trajectories. Raises the error of the thread that plays it."""
        if self.trajectories is None:
            assert self.playing is not None
            self.trajectories = self.playing.result(progress)
        return self.trajectories


class Ahead:
    """Gives `trainer` the rollout batch of the present step, and starts sampling the next one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._next: Batch | None = None

    def take(self, rows: list[int]) -> tuple[list[Trajectory], int]:
        """Return the batch of the present step, and how many updates its weights are behind. Start the next batch.

        rows: the indices of the batch's tasks. Raises RuntimeError if other tasks were sampled ahead.
        """
        trainer = self._trainer
        step = trainer.state.global_step
        batch = self._next or self._begin(step, rows)
        if (batch.step, batch.rows) != (step, rows):
            raise RuntimeError(f"tasks {batch.rows} of step {batch.step} were sampled, not {rows} of step {step}")
        trajectories = batch.wait(trainer.show_rollout)
        following = step + trainer.args.steps_per_generation
        over = following >= trainer.state.max_steps
        self._next = None if over else self._begin(following, self._rows_at(following))
        return trajectories, step - batch.weights

    def _begin(self, step: int, rows: list[int]) -> Batch:
        """Start to sample, with the current weights, the batch that trains at `step`."""
        trainer = self._trainer
        trainer.rollout_step = step
        episodes = trainer.episodes([trainer.tasks[row] for row in rows])
        return Batch(step, trainer.state.global_step, rows, trainer.engine.begin(episodes))

    def _rows_at(self, step: int) -> list[int]:
        """Return the indices of this process's tasks in the rollout batch at `step`."""
        trainer = self._trainer
        rows = trainer.order.rollout_batch(step // trainer.args.steps_per_generation)
        share = len(rows) // trainer.accelerator.num_processes
        begin: int = trainer.accelerator.process_index * share
        return list(rows[begin : begin + share])

    def save(self, checkpoint: Path) -> None:
        """Wait for the batch that is being sampled, if there is one, and write it into a checkpoint."""
        batch = self._next
        if batch is not None:
            played = [_to_plain(one) for one in batch.wait(self._trainer.show_rollout)]
            checkpoint.mkdir(parents=True, exist_ok=True)
            content = {"step": batch.step, "weights": batch.weights, "rows": batch.rows, "played": played}
            torch.save(content, self._file(checkpoint))

    def load(self, checkpoint: Path) -> None:
        """Read the batch from a checkpoint, if it holds one. The last checkpoint of a run holds none."""
        file = self._file(checkpoint)
        if file.exists():
            saved: dict[str, Any] = torch.load(file, weights_only=True)
            played = [_from_plain(one) for one in saved["played"]]
            self._next = Batch(saved["step"], saved["weights"], saved["rows"], trajectories=played)

    def _file(self, checkpoint: Path) -> Path:
        return checkpoint / f"ahead-{self._trainer.accelerator.process_index}.pt"

    def give_up(self) -> None:
        """Cancel the batch that is being sampled, if there is one."""
        if self._next is not None and self._next.playing is not None:
            self._next.playing.give_up()
        self._next = None


def _to_plain(played: Trajectory) -> dict[str, Any]:
    """Convert a trajectory to tensors and texts, so that a file holds no pickled classes.

    What the policy wrote is JSON: a call may hold an integer of a thousand digits, which torch cannot read back.
    """
    content = dict(vars(played), calls=[dict(vars(call)) for call in played.calls])
    content |= {name: torch.tensor(content[name], dtype=torch.int32) for name in TOKENS}
    content |= {name: json.dumps(content[name]) for name in WRITTEN}
    if played.logprobs is not None:
        content["logprobs"] = torch.tensor(played.logprobs, dtype=torch.float64)
    return content


def _from_plain(content: dict[str, Any]) -> Trajectory:
    """Convert back what `_to_plain` returned. Checkpoints of older versions hold no JSON."""
    lists = {name: value.tolist() for name, value in content.items() if isinstance(value, torch.Tensor)}
    lists |= {name: json.loads(content[name]) for name in WRITTEN if isinstance(content[name], str)}
    content = {**content, **lists}
    calls = [ToolCall(**call) for call in content["calls"]]
    return Trajectory(**{**content, "calls": calls, "component": [Component(kind) for kind in content["component"]]})
