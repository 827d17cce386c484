"""Constraints on the mean of a measure of episodes. Each has a multiplier lambda that is updated after every batch.

A method adds lambda times the advantage of each measure to its own advantage, and calls `update_dual` once per rollout
batch. Checkpoints hold the multipliers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from agentrl.config.constraints import Constraint, EpisodeConstraint
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.objectives.dual import DualVariables, Multiplier
from agentrl.trainers.grpo import AgentGRPOTrainer

DUAL_FILE = "dual.pt"  # in every checkpoint of a run with constraints


def dual_variables(config: Config) -> DualVariables:
    """Make the multipliers of the constraints in `config`, at their initial values."""
    dual = config.dual
    return DualVariables(
        {
            constraint.name: Multiplier(
                dual.kind,
                constraint.threshold,
                constraint.initial,
                dual.learning_rate,
                cap=dual.cap,
                decay=dual.ema_decay,
                warmup=dual.warmup,
                betas=(dual.beta1, dual.beta2),
                k_p=dual.k_p,
                k_d=dual.k_d,
            )
            for constraint in config.algo.constraints
        }
    )


class ConstrainedTrainer(AgentGRPOTrainer):
    """A GRPO trainer with `algo.constraints`. A subclass implements `measured`."""

    def __init__(self, **kwargs: Any) -> None:
        self.dual = dual_variables(kwargs["config"])
        super().__init__(**kwargs)

    def own_callbacks(self) -> list[TrainerCallback]:
        stop = [StopWhereInfeasible(self)] if self.config.dual.on_infeasible == "stop" else []
        return [*super().own_callbacks(), *stop]

    def measured(self, constraint: Any) -> Tensor:
        """Return the measure (B,) of a constraint in the rollout batch. Larger is better.

        It is NaN for rows to which the constraint does not apply.
        """
        raise NotImplementedError

    def update_dual(self) -> None:
        """Update every multiplier from the means over all processes.

        Warn if a multiplier has stayed at its cap, or if all replies alike have met the threshold, for `dual.patience`
        batches.
        """
        constraints: list[Constraint | EpisodeConstraint] = self.config.algo.constraints
        columns = {one.name: self.measured(one) for one in constraints}
        alike = [name for name, column in columns.items() if self._are_alike(column)]
        self.dual.update({name: self._mean(column) for name, column in columns.items()}, alike)
        patience = self.config.dual.patience
        for constraint, multiplier in zip(constraints, self.dual, strict=True):
            if int(multiplier.at_cap) == patience:
                self._tell(f"warning: {self.infeasible(constraint, multiplier)}")
            if int(multiplier.satisfied) == patience:
                self._tell(
                    f"warning: constraint '{constraint.name}': in each of the last {patience} batches all replies "
                    f"had the same {self.measure_label(constraint)} and met the bound, so it teaches nothing; "
                    "is the bench too easy, its grader too kind, or the bound too low?"
                )

    def measure_label(self, constraint: Constraint | EpisodeConstraint) -> str:
        """Say in words what `measured` measures."""
        return constraint.label

    def infeasible(self, constraint: Constraint | EpisodeConstraint, multiplier: Multiplier) -> str:
        """Write the message about a multiplier that stays at its cap: what it means, and what to do."""
        return (
            f"constraint '{constraint.name}': lambda has been at its cap {multiplier.cap:g} for "
            f"{int(multiplier.at_cap)} batches, {self.measure_label(constraint)} averages "
            f"{constraint.sign * float(multiplier.ema):.3f} and {constraint.bound_label} is "
            f"{constraint.sign * constraint.threshold:g}; this policy may not reach it: lower its threshold (algo.tau, "
            "or the one in algo.constraints), raise dual.cap, or train longer or at a larger learning rate"
        )

    def _are_alike(self, values: Tensor) -> bool:
        """Whether the values of all processes that are not NaN are the same."""
        every = self.accelerator.gather(values.to(self.accelerator.device))
        known = every[~torch.isnan(every)]
        return len(known) > 0 and bool((known == known[0]).all())

    def _mean(self, values: Tensor) -> float | None:
        """Return the mean over all processes of the values that are not NaN, or None if all are NaN."""
        total, count = self._sums(values)
        return total / count if count else None

    def _sums(self, values: Tensor) -> tuple[float, float]:
        """Return the sum and the number, over all processes, of the values that are not NaN."""
        known = values[~torch.isnan(values)]
        local = torch.tensor([known.sum(), len(known)], dtype=torch.float64, device=self.accelerator.device)
        total, count = self.accelerator.reduce(local, reduction="sum").tolist()
        return total, count

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self.dual.names:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            torch.save(self.dual.state_dict(), folder / DUAL_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.dual.names:
            self.dual.load_state_dict(torch.load(Path(checkpoint) / DUAL_FILE, weights_only=True))


class StopWhereInfeasible(TrainerCallback):
    """dual.on_infeasible=stop: saves a checkpoint and ends the run once a multiplier was at its cap for `patience`
    batches. Add it after the callback that seals checkpoints.
    """

    def __init__(self, trainer: ConstrainedTrainer) -> None:
        self._trainer = trainer
        self._reason: str | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        config = self._trainer.config
        cycle = self._trainer.args.steps_per_generation // self._trainer.args.gradient_accumulation_steps
        for constraint, multiplier in zip(config.algo.constraints, self._trainer.dual, strict=True):
            if int(multiplier.at_cap) >= config.dual.patience and state.global_step % cycle == 0:
                self._reason = self._trainer.infeasible(constraint, multiplier)
                control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._reason is not None:
            raise UserError(f"{self._reason} (dual.on_infeasible=stop; the checkpoint of this step is kept)")
