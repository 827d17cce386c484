"""PACT under constraints: the advantage and the step of the multiplier by hand, what is logged, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentrl.config.rules import validate
from agentrl.core.errors import UserError
from agentrl.evaluation.tasks import check_tasks
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import composed, make_trainer, rolled_batch, small

CALLS = "algo.constraints=[{name: calls, measure: calls, side: at_most, bound: 1, initial: 2}]"
RULE = "algo.constraints=[{name: rule, measure: kept_rule, side: at_least, bound: 0.75, initial: 0.5}]"
DUAL = ("dual.learning_rate=0.1", "dual.ema_decay=0", "algo.advantage.kind=trajectory", "algo.advantage.eps=1e-9")


def calls_as_often_as_its_number(task: Any, sample: int, turn: int) -> str:
    """Rollout 0 makes no call, rollout 1 one, rollout 2 two, rollout 3 three; none answers right."""
    if turn >= sample % 4:
        return "<answer>Nobody</answer>"
    return '<tool_call>\n{"name": "get_nothing", "arguments": {}}\n</tool_call>'


def test_calls_by_hand(tmp_path: Path) -> None:
    keys = ("reward=answer", "algo.q=1", "algo.sft_coef=0")
    trainer = make_trainer(small(CALLS, *DUAL, *keys), tmp_path, calls_as_often_as_its_number)
    batch = rolled_batch(trainer)
    # No reward differs. Calls 0, 1, 2, 3: mean 1.5, unbiased deviation 1.291; lambda 2 times minus their z-scores.
    expected = 2 * (1.5 - torch.tensor([0.0, 1.0, 2.0, 3.0] * 2)) / 1.2909944
    own = batch["advantages"].abs().max(1).values * batch["advantages"].sum(1).sign()
    assert torch.allclose(own, expected, atol=1e-5)
    log = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
    assert (log["lambda/calls"], log["tau/calls"]) == (2.0, 1.0)  # as the batch was used
    assert log["slack/calls"] == pytest.approx(-0.5)
    assert float(trainer.dual.values()[0]) == pytest.approx(2 + 0.1 * 0.5)
    rolled_batch(trainer)
    assert trainer._metrics["train"]["ema/calls"][-1] == pytest.approx(1.5)


@pytest.mark.parametrize(("calls", "reported"), [(None, 0), (2, 1)])
def test_a_bound_that_every_episode_meets_alike_is_reported(tmp_path: Path, calls: int | None, reported: int) -> None:
    """A mean of 1.5 calls is no reward of 1: what counts is whether the episodes differ and whether they meet it."""
    said: list[str] = []
    console = SimpleNamespace(say=said.append, start=print, update=print, finish=print)
    least = "algo.constraints=[{name: calls, measure: calls, side: at_least, bound: 1, initial: 0}]"
    config = small(least, *DUAL, "dual.patience=2", "reward=answer", "algo.q=1", "algo.sft_coef=0")

    def script(task: Any, sample: int, turn: int) -> str:
        return calls_as_often_as_its_number(task, sample if calls is None else calls, turn)

    trainer = make_trainer(config, tmp_path, script, console=console)
    for _ in range(3):
        rolled_batch(trainer)
    assert len([text for text in said if "all replies had the same calls" in text]) == reported


def test_a_rule_by_hand(tmp_path: Path) -> None:
    """The second task needs the tool that its rule forbids: the one rollout of four that solves it breaks the rule."""
    trainer = make_trainer(
        small(RULE, *DUAL, "bench.forbid=0.5", "algo.q=1", "algo.sft_coef=0"), tmp_path, expert_script
    )
    order = sorted(range(len(trainer.tasks)), key=lambda row: trainer.tasks[row].data["kind"])
    trainer.tasks = [trainer.tasks[row] for row in (order[0], order[-1])]
    assert [task.data["kind"] for task in trainer.tasks] == ["aligned", "conflict"]
    rolled_batch(trainer)
    kept = trainer.measured(trainer.config.algo.constraints[0])
    solved = [
        trainer.bench.score(t, p).metrics["solve_rate"]
        for t, p in zip(trainer._batch, trainer._trajectories, strict=True)
    ]
    assert kept[:4].tolist() == [1, 1, 1, 1]
    assert sum(solved[4:]) == 1
    assert kept[4 + solved[4:].index(1.0)] == 0
    mean = kept.mean().item()
    assert trainer._metrics["train"]["slack/rule"][-1] == pytest.approx(mean - 0.75)
    assert float(trainer.dual.values()[0]) == pytest.approx(max(0.0, 0.5 + 0.1 * (0.75 - mean)))


def test_without_constraints_nothing_changes(tmp_path: Path) -> None:
    advantages = []
    for keys in ((), ("algo.constraints=[{name: calls, measure: calls, side: at_most, bound: 1, initial: 0}]",)):
        trainer = make_trainer(small(*keys), tmp_path / str(len(advantages)), expert_script)
        advantages.append(rolled_batch(trainer)["advantages"])
    assert torch.equal(*advantages)


def test_the_multiplier_is_in_the_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(small(CALLS, *DUAL, "trainer.max_steps=1"), tmp_path, calls_as_often_as_its_number)
    trainer.train()
    trainer._save_checkpoint(trainer.model, None)
    (folder,) = tmp_path.rglob("checkpoint-1")
    value = float(trainer.dual.values()[0])
    assert value != 2
    trainer.dual.update({"calls": -50.0})
    trainer._load_optimizer_and_scheduler(str(folder))
    assert float(trainer.dual.values()[0]) == value


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"algo\.constraints\.0\.measure=kept_rule: bench=minihop has no such measure"):
        make_trainer(small(RULE), tmp_path)
    with pytest.raises(UserError, match=r"measure=kept_rule: bench=minihop has no such measure"):
        check_tasks(small(RULE))  # the command line does so before anything is loaded
    check_tasks(composed("experiment=pact_rule"))
    high = "algo.constraints=[{name: calls, measure: calls, side: at_most, bound: 3, initial: 99}]"
    with pytest.raises(UserError, match=r"algo\.constraints\.0\.initial=99.*dual\.cap=20"):
        validate(composed(high))
    with pytest.raises(UserError, match=r"share a name"):
        validate(composed(CALLS.replace("]", ", {name: calls, measure: calls, side: at_most, bound: 3, initial: 1}]")))


def test_the_experiments_are_minihop_under_one_constraint_each() -> None:
    rule, calls = composed("experiment=pact_rule"), composed("experiment=pact_calls")
    assert rule.bench.forbid == 0.3
    assert (rule.algo.constraints[0].threshold, calls.algo.constraints[0].threshold) == (0.9, -3)
    assert (rule.algo.constraints[0].initial, rule.dual.initial) == (1, 1)
    for config in (rule, calls):
        validate(config)
