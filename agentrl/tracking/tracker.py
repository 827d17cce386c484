"""Start the live tracker of a run. It follows the run's files, so a tracker that fails only causes a warning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback

from agentrl.config.schema import Config
from agentrl.store.run import RunDirectory
from agentrl.tracking.base import Guard, Tracker
from agentrl.trainers.callbacks import RENAMED


@contextmanager
def track_run(config: Config, run: RunDirectory) -> Iterator[Tracker]:
    """Yield the chosen tracker and close it when the block ends. It reads from status.json how the run ended."""
    tracker = _tracker(config, run)
    try:
        yield tracker
    finally:
        tracker.close(str(run.status()["status"]))


def _tracker(config: Config, run: RunDirectory) -> Tracker:
    name = config.tracker.name
    if name == "none" or os.environ.get("RANK", "0") != "0":
        return Tracker()
    if name in ("trackio", "tensorboard"):
        return TransformersTracker(name, config, run)
    from agentrl.tracking.wandb_run import WandbTracker

    return WandbTracker(config, run)


class TransformersTracker(Tracker):
    """TensorBoard and trackio through the callbacks of transformers. They see training, not evaluation."""

    def __init__(self, name: str, config: Config, run: RunDirectory) -> None:
        self._name, self._config, self._run = name, config, run

    def attach(self, trainer: Trainer) -> None:
        guard = Guard(self._name)
        with guard():
            if self._name == "tensorboard":
                callback = TensorBoardCallback()
                callback.logging_dir = str(self._run.path / "tensorboard")
            else:
                trainer.args.project = self._config.tracker.project
                trainer.args.run_name = f"{self._config.name}/{self._run.path.name}"
                callback = TrackioCallback()
            trainer.add_callback(_Guarded(callback, guard))


class _Guarded(TrainerCallback):
    """Runs another callback under a guard, and gives it the names of metrics.jsonl instead of TRL's."""

    def __init__(self, inner: TrainerCallback, guard: Guard) -> None:
        self._inner, self._guard = inner, guard

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._pass_on("on_train_begin", args, state, control, **kw)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kw: Any,
    ) -> None:
        named = {RENAMED.get(name, name): value for name, value in (logs or {}).items()}
        self._pass_on("on_log", args, state, control, logs=named, **kw)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._pass_on("on_train_end", args, state, control, **kw)

    def _pass_on(self, event: str, *positional: Any, **named: Any) -> None:
        if self._guard.works:
            with self._guard():
                getattr(self._inner, event)(*positional, **named)
