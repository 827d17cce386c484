"""Training that has gone wrong: gradients that are no numbers, batches that teach nothing. `faults` says what follows.

How often in a row is read from the log history, which every checkpoint holds: a resumed run counts on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.config.schema import Faults
from agentrl.core.errors import UserError
from agentrl.core.stop import any_process

NO_SIGNAL = "no_signal"  # share of groups that teach nothing, by no reward that counts and by no expert trace


class Watch(TrainerCallback):
    """Stops a run, warns, or leaves updates out, as `faults` says."""

    def __init__(self, config: Faults, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Before the weights are touched: an update with NaN or infinity in it would destroy them.

        DeepSpeed has made its update by now, or has found such a gradient and left the update out.
        """
        assert model is not None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        here = bool(gradients) and not bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        if not any_process(here or (isinstance(optimizer, DeepSpeedOptimizerWrapper) and optimizer.step_was_skipped)):
            return
        step, before = (
            state.global_step + 1,
            _count_trailing(state, "grad_norm", lambda value: not math.isfinite(value)),
        )
        found = f"the gradient of update {step} is not finite"
        if self._config.nonfinite == "stop":
            raise UserError(
                f"{found}, and faults.nonfinite=stop; faults.nonfinite=skip leaves such updates out and resumes this "
                "run, a lower trainer.learning_rate or trainer.max_grad_norm is a new one"
            )
        if before + 1 >= self._config.patience:
            raise UserError(
                f"{found}, for the {before + 1}th time in a row: faults.patience={self._config.patience}; lower "
                "trainer.learning_rate or trainer.max_grad_norm"
            )
        for parameter in model.parameters():
            parameter.grad = None  # no update, no decay, no change of the optimizer's moments
        self._say(f"{found}: left out (faults.nonfinite=skip)")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every update: how many rollout batches in a row taught nothing."""
        patience = self._config.patience
        if NO_SIGNAL not in state.log_history[-1]:
            return
        silent = _count_trailing(state, NO_SIGNAL, lambda value: value == 1)
        if silent == 0 or silent % patience != 0:
            return
        text = (
            f"in the last {silent} rollout batches nothing taught anything: all rollouts of a prompt earned the "
            "same of every reward that counts, and no expert trace stood beside them; choose tasks that are neither "
            "too easy nor too hard, or raise rollout.num_generations or rollout.temperature ("
            f"faults.no_signal={self._config.no_signal}, faults.patience={patience})"
        )
        if self._config.no_signal == "stop":
            raise UserError(text)
        self._say(f"warning: {text}")


def finite_rewards(rewards: list[list[float]], tasks: list[str], nonfinite: str) -> list[list[float]]:
    """Turn rewards of every rollout of `tasks` (ids), checked: advantages would take NaN and infinity for ties.

    With nonfinite='skip' all rewards of such a rollout become NaN, which is how one without a reward is marked; else
    UserError.
    """
    checked = []
    for task, turns in zip(tasks, rewards, strict=True):
        bad = [value for value in turns if not math.isfinite(value)]
        if bad and nonfinite == "stop":
            raise UserError(
                f"a rollout of task {task} has the reward {bad[0]}; mend the bench or its reward, or let "
                "faults.nonfinite=skip leave such rollouts out"
            )
        checked.append([math.nan] * len(turns) if bad else turns)
    return checked


def _count_trailing(state: TrainerState, name: str, bad: Callable[[float], bool]) -> int:
    """How many of the latest log entries that have a value of `name` are bad, back to the last good one."""
    count = 0
    for entry in reversed(state.log_history):
        if name in entry:
            if not bad(entry[name]):
                break
            count += 1
    return count
