"""Writes sampled trajectories as lines of rollouts.jsonl, with everything a viewer needs and without tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from agentrl.core.bench import Score
from agentrl.core.trajectory import Trajectory
from agentrl.store.run import RunDirectory


class RolloutLog:
    """Writes the first `per_batch` trajectories of every rollout batch."""

    def __init__(self, run: RunDirectory, tokenizer: PreTrainedTokenizerFast, per_batch: int) -> None:
        self._run, self._tokenizer, self._per_batch = run, tokenizer, per_batch

    def write(
        self,
        step: int,
        trajectories: list[Trajectory],
        rewards: list[list[float]],
        scores: list[Score],
        advantages: Tensor,
        notes: list[dict[str, Any]],
    ) -> None:
        """Append one line per trajectory. `step` is the number of updates made before the batch was sampled.

        `notes` holds the values that the method adds to each line. Their names must not occur in the line yet.
        """
        for index, trajectory in enumerate(trajectories[: self._per_batch]):
            length = len(trajectory.completion_ids)
            record = asdict(trajectory) | {
                "component": [int(kind) for kind in trajectory.component],
                "advantages": [round(value, 5) for value in advantages[index, :length].tolist()],
            }
            self._run.append(
                self._run.rollouts_path,
                {
                    "step": step,
                    "rewards": rewards[index],
                    "metrics": scores[index].metrics,
                    "prompt": self._tokenizer.decode(trajectory.prompt_ids),
                    "tokens": [self._tokenizer.decode([token]) for token in trajectory.completion_ids],
                    **record,
                    **notes[index],
                },
            )
