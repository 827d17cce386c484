"""Handles training that has gone wrong: gradients that are not finite, and batches without a learning signal.

The keys in `faults` decide what happens. The number of faults in a row is counted in the log history, which every
checkpoint holds, so a resumed run continues the count.
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

STRAY_KL = 0.1  # nats a token between sampler and trainer that rounding in 16 bits does not explain
SAMPLER_KL = "sampler/kl"  # metric: estimated KL of the sampler's distribution to the trainer's
NO_SIGNAL = "no_signal"  # metric: share of groups without a learning signal, from neither rewards nor an expert trace


class Watch(TrainerCallback):
    """Stops the run, warns, or skips updates, as `faults` says."""

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
        """Check the gradients before the update: an update with NaN or infinity would destroy the weights.

        DeepSpeed has already made its update at this point, or has found such a gradient and skipped the update.
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
                f"{found}, and faults.nonfinite=stop. Set faults.nonfinite=skip to resume this run and skip such "
                "updates, or start a new run with a lower trainer.learning_rate or trainer.max_grad_norm"
            )
        if before + 1 >= self._config.patience:
            raise UserError(
                f"{found}, for the {before + 1}th time in a row: faults.patience={self._config.patience}; lower "
                "trainer.learning_rate or trainer.max_grad_norm"
            )
        for parameter in model.parameters():
            parameter.grad = None  # so the optimizer changes neither weights nor moments, and applies no weight decay
        self._say(f"{found}: the update is skipped (faults.nonfinite=skip)")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every update, warn of a sampler that does not draw from the trainer's policy, and of lacking signal.

        Without a learning signal for several rollout batches in a row, warn or stop.
        """
        self._check_sampler(state)
        patience = self._config.patience
        if NO_SIGNAL not in state.log_history[-1]:
            return
        silent = _count_trailing(state, NO_SIGNAL, lambda value: value == 1)
        if silent == 0 or silent % patience != 0:
            return
        text = (
            f"the last {silent} rollout batches had no learning signal: every reward that counts was equal for all "
            "rollouts of a prompt, and no expert trace was trained on; choose tasks that are neither too easy nor too "
            "hard, or raise rollout.num_generations or rollout.temperature ("
            f"faults.no_signal={self._config.no_signal}, faults.patience={patience})"
        )
        if self._config.no_signal == "stop":
            raise UserError(text)
        self._say(f"warning: {text}")

    def _check_sampler(self, state: TrainerState) -> None:
        """Warn when the sampler begins to differ from the trainer, once until it agrees again."""
        entry = state.log_history[-1]
        if SAMPLER_KL in entry and _count_trailing(state, SAMPLER_KL, lambda value: value > STRAY_KL) == 1:
            self._say(
                f"warning: the rollouts of update {state.global_step} do not come from the policy that is trained: the "
                f"log-probs of sampler and trainer differ ({SAMPLER_KL}={entry[SAMPLER_KL]:.3g} nats a token). With "
                "trainer.engine=compiled set trainer.engine=packed; with rollout.ahead=1 lower trainer.learning_rate; "
                "with vLLM set vllm.kv_cache=auto"
            )


def finite_rewards(rewards: list[list[float]], tasks: list[str], nonfinite: str) -> list[list[float]]:
    """Check that the turn rewards of every rollout are finite. Return them. `tasks` holds the rollouts' task ids.

    If a reward of a rollout is not finite: with nonfinite='skip' all its rewards become NaN, which marks a rollout
    without a reward; with 'stop' raise UserError.
    """
    checked = []
    for task, turns in zip(tasks, rewards, strict=True):
        bad = [value for value in turns if not math.isfinite(value)]
        if bad and nonfinite == "stop":
            raise UserError(
                f"a rollout of task {task} has the reward {bad[0]}; correct the bench or its reward, or set "
                "faults.nonfinite=skip to leave such rollouts out"
            )
        checked.append([math.nan] * len(turns) if bad else turns)
    return checked


def _count_trailing(state: TrainerState, name: str, bad: Callable[[float], bool]) -> int:
    """Count the bad log entries since the last good one, among the entries that have a value of `name`."""
    count = 0
    for entry in reversed(state.log_history):
        if name in entry:
            if not bad(entry[name]):
                break
            count += 1
    return count
