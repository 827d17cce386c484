"""Saves the finished updates if the rollout batch after them fails, so that a dead server costs that batch alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.core.stop import CommonError


class FinishedUpdates(TrainerCallback):
    """Knows what a checkpoint of the updates so far must hold, although the next batch has begun.

    The batch draws random numbers and counts tokens. Both are noted at the end of each update, and set back before the
    checkpoint is written, so it equals the one that a run saves between the two batches.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._set_back: Callable[[], None] | None = None  # None: the updates so far are saved

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        python, numpy, cpu, tokens = (
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            state.num_input_tokens_seen,
        )
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

        def set_back() -> None:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(gpus)
            state.num_input_tokens_seen = tokens

        self._set_back = set_back

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._set_back = None

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save a checkpoint if the block, a rollout batch, raises an error in every process; the error goes on."""
        try:
            yield
        except Exception as error:
            if self._set_back is not None and (
                isinstance(error, CommonError) or self._trainer.accelerator.num_processes == 1
            ):
                self._set_back()
                self._trainer.save_now()
            raise
