"""The callback that saves checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from agentrl.core.errors import UserError
from agentrl.trainers.callbacks import Checkpoints


@pytest.mark.parametrize(
    ("best", "refused"), [("nosuch", True), ("-loss/total", False), ("reward", False), (None, False)]
)
def test_an_unknown_best_metric_is_refused_after_the_first_update(best: str | None, refused: bool) -> None:
    config: Any = SimpleNamespace(keep_best=best, save_steps=8)
    run: Any = SimpleNamespace(checkpoints_dir=None)
    callback = Checkpoints(run, config, 1, stop=None)  # type: ignore[arg-type]
    state, arguments = TrainerState(global_step=4), SimpleNamespace()  # a resumed run
    callback.on_train_begin(arguments, state, TrainerControl())  # type: ignore[arg-type]
    state.global_step = 5
    state.log_history = [{"step": 4, "nosuch": 1.0}, {"step": 5, "loss/total": 0.3, "reward": 1.0}]
    if not refused:
        callback.on_log(arguments, state, TrainerControl())  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=r"trainer.keep_best=nosuch: .*choose from loss/total, reward"):
        callback.on_log(arguments, state, TrainerControl())  # type: ignore[arg-type]
