"""Schedules of PACT that the success of a prompt, or the loss on its trace, drives in place of the updates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.core.trajectory import Component
from agentrl.objectives.pact import adaptive_q, sft_token_weights
from agentrl.objectives.schedules import anneal_value, reasoning_level
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import make_trainer, rolled_batch, small

KEYS = ("algo.kl_coef=0", "algo.q=0")
POINTS = [0.2, 0.4, 0.6, 0.8]


def adaptive(out: Path, *overrides: str, script: Any = expert_script) -> tuple[Any, Any]:
    trainer = make_trainer(small(*KEYS, *overrides), out, script)
    return trainer, rolled_batch(trainer)


def weights_at(trace: Any, level: int, scale: float) -> torch.Tensor:
    parts = (torch.tensor(one) for one in (trace.component, trace.turn, trace.chunk))
    return sft_token_weights(
        *parts, reasoning="segment", call="scale", level=level, kept=1.0, call_scale=scale, call_start=0.8
    )


def test_success_drives_the_level_and_the_weight_of_calls(tmp_path: Path) -> None:
    """One of four rollouts solves its task: a progress of 0.25, whatever the update."""
    trainer, batch = adaptive(tmp_path, "algo.schedule.level_from=success", "algo.schedule.call_from=success")
    trace = batch["trace"][0]
    for trainer.state.global_step in (0, 3):
        assert torch.equal(trainer.trace_weights(trace), weights_at(trace, 3, 0.8 - 0.6 * 0.25))
    logged = trainer._metrics["train"]
    assert logged["anneal/level"] == [3] and logged["anneal/call_scale"] == pytest.approx([0.65])
    trainer.log({})
    assert trainer.state.log_history[-1]["anneal/level"] == 3  # not a mean with the level of the updates


@pytest.mark.parametrize(
    ("keys", "logged"),
    [
        ((), {"anneal/level": 1, "anneal/call_scale": 0.35}),  # at three quarters of the way
        (("algo.schedule.call=fixed", "algo.schedule.reasoning=fixed"), {"anneal/call_scale": 0.8}),
        (("algo.schedule.call=none", "algo.schedule.reasoning=token"), {"anneal/kept": 0.25, "anneal/call_scale": 0}),
        (("algo.schedule.reasoning=full_token",), {"anneal/kept": 0.25}),
    ],
)
def test_only_schedules_that_are_used_are_logged(tmp_path: Path, keys: Any, logged: dict[str, float]) -> None:
    trainer = make_trainer(small(*KEYS, *keys), tmp_path, expert_script)
    trainer.state.max_steps, trainer.state.global_step = 4, 3
    trainer.model.train()
    found = trainer._shown(*trainer._schedules(None, None))
    assert found == pytest.approx(logged)
    trainer.state.global_step = 4  # the update that is logged has just been made
    trainer.log({})
    line = trainer.state.log_history[-1]
    assert {name: value for name, value in line.items() if name.startswith("anneal/")} == pytest.approx(logged)


def test_a_batch_without_a_trace_logs_no_schedule(tmp_path: Path) -> None:
    trainer = make_trainer(small(*KEYS, "algo.schedule.level_from=success"), tmp_path, expert_script)
    trainer._log_progress([])
    trainer.log({})
    assert "anneal/level" not in trainer.state.log_history[-1]


def test_prompts_differ_by_their_own_success(tmp_path: Path) -> None:
    def first_task_alone(task: Any, sample: int, turn: int) -> str:
        return expert_script(task, 0, turn) if task.id == tasks[0].id else "<answer>Nobody</answer>"

    trainer = make_trainer(small(*KEYS, "algo.schedule.level_from=success"), tmp_path, first_task_alone)
    tasks = trainer.tasks
    batch = rolled_batch(trainer)
    solved, failed = (trainer.trace_weights(batch["trace"][row]) for row in (0, 4))
    assert torch.equal(solved, weights_at(batch["trace"][0], 0, 0.8))  # no reasoning; calls follow the updates
    assert torch.equal(failed, weights_at(batch["trace"][4], 4, 0.8))
    trainer.state.global_step = 2  # of 4
    assert torch.equal(trainer.trace_weights(batch["trace"][4]), weights_at(batch["trace"][4], 4, 0.5))


def test_the_loss_on_the_trace_drives_all_three(tmp_path: Path) -> None:
    keys = ("algo.schedule.level_from=loss", "algo.schedule.call_from=loss", "algo.q_from=loss", "algo.sft_coef=0.1")
    trainer = make_trainer(small(*KEYS, *keys), tmp_path, expert_script)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(0.0)  # all tokens alike: L = log V
    batch = rolled_batch(trainer)
    size = trainer.model.config.vocab_size
    assert trainer._anchoring == pytest.approx([adaptive_q(0.0, 1 / size)] * 8, rel=1e-4)
    trace = batch["trace"][0]
    assert trace.level_progress == trace.call_progress == pytest.approx(1 / size, rel=1e-4)


def test_the_loss_is_that_of_every_token_that_could_be_trained_on(tmp_path: Path) -> None:
    trainer, batch = adaptive(tmp_path, "algo.schedule.call_from=loss")
    trace = batch["trace"][0]
    ids = torch.tensor([trace.prompt_ids + trace.ids])
    with torch.no_grad():
        spread = torch.log_softmax(trainer.model(input_ids=ids).logits[0, len(trace.prompt_ids) - 1 : -1].float(), -1)
    component, chunk = torch.tensor(trace.component), torch.tensor(trace.chunk)
    on = ((component == int(Component.REASONING)) & (chunk >= 0)) | (component == int(Component.TOOL_CALL))
    nll = -spread.gather(1, torch.tensor(trace.ids)[:, None])[on, 0].mean().item()
    assert trace.call_progress == pytest.approx(math.exp(-nll), rel=1e-3) and trace.level_progress is None
    scale = anneal_value("linear", 0.8, 0.2, trace.call_progress)
    assert torch.equal(trainer.trace_weights(trace), weights_at(trace, reasoning_level(0.0, POINTS), scale))


def test_the_updates_drive_the_schedules_by_default_and_nothing_is_measured(tmp_path: Path) -> None:
    trainer, batch = adaptive(tmp_path)
    assert trainer._progress == {}
    assert batch["trace"][0].level_progress is batch["trace"][0].call_progress is None
    assert "anneal/level" not in trainer._metrics["train"]
