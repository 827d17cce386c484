"""The HIPO trainer: one update by hand, its reductions, what is left out, its multiplier's state and its warnings."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import composed, gradient, make_trainer, rolled_batch
from transformers import TrainerControl
from trl import GRPOTrainer

from agentrl.errors import UserError
from agentrl.judges.base import JudgeRequest, Verdict
from agentrl.objectives.hipo import lagrangian_advantage
from agentrl.trainers.hipo import StopWhereInfeasible

SMALL = (
    *("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "trainer.micro_batch=8", "trainer.max_steps=4"),
    *("rollout.num_generations=4", "bench.train_tasks=12", "bench.test_tasks=4", "algo.kl_coef=0"),
)

HIPO = (
    "algo=hipo",
    *SMALL,
    "dual.initial=2",
    "dual.learning_rate=0.07",
    "dual.ema_decay=0.9",
)  # the paper's, not the preset's


def reply(task: Any, sample: int, turn: int) -> str:
    """Four replies of a group: the expert's, the servant's, one word with and one without the opening."""
    rule, items = task.data["rule"], task.data["items"]
    permitted = " ".join(item for item in items if item not in rule.banned)
    return (f"{rule.opener} {permitted}", " ".join(items), f"{rule.opener} {items[0]}", items[-1])[sample]


def rewards_of(trainer, reward):
    values = [math.nan if r[reward] is None else r[reward] for r in trainer._rewards]
    return torch.tensor(values, dtype=torch.float64).view(-1, trainer.num_generations)


def test_one_update_of_primal_and_dual_by_hand(tmp_path: Path):
    trainer = make_trainer(composed(*HIPO), tmp_path, reply)
    batch = rolled_batch(trainer)
    user, system = rewards_of(trainer, "user"), rewards_of(trainer, "sys")
    for row, task in enumerate(trainer._batch):
        assert trainer.bench.rewards(task, reply(task, row % 4, 0)) == trainer._rewards[row]

    def z(x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    advantage = (z(user) + 2.0 * z(system)).flatten().float()  # lambda_0 = 2
    assert torch.allclose(batch["advantages"][:, 0], advantage, atol=1e-5)
    # Primal: at ratio 1 the sequence-level surrogate is the mean over replies of A times the mean log-prob of a reply.
    loss = trainer._compute_loss(trainer.model, batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1] / trainer.temperature
    logps = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0][:, -batch["completion_ids"].shape[1] :]
    means = (logps * batch["completion_mask"]).sum(1) / batch["completion_mask"].sum(1)
    by_hand = -(advantage * means).mean()
    assert torch.allclose(gradient(trainer, loss), gradient(trainer, by_hand), atol=1e-5)
    # Dual: lambda_1 = 2 + .07 (.7 - mean r_sys), the first EMA being the first mean.
    assert trainer.dual.values().item() == pytest.approx(2 + 0.07 * (0.7 - system.mean().item()))


def test_a_multiplier_of_zero_is_grpo_on_the_users_reward(tmp_path: Path):
    trainer = make_trainer(
        composed("algo=user_only", *SMALL, "algo.importance_level=token", "algo.advantage_eps=1e-4"), tmp_path, reply
    )
    seen = {}
    original = GRPOTrainer._generate_and_score_completions

    def spy(self, inputs):
        out = original(self, inputs)
        seen["advantages"] = out["advantages"].clone()
        return out

    GRPOTrainer._generate_and_score_completions = spy
    try:
        batch = rolled_batch(trainer)
    finally:
        GRPOTrainer._generate_and_score_completions = original
    assert torch.allclose(batch["advantages"][:, 0], seen["advantages"], atol=1e-6)
    ours = trainer._compute_loss(trainer.model, batch)
    theirs = GRPOTrainer._compute_loss(trainer, trainer.model, {**batch, "advantages": seen["advantages"]})
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(gradient(trainer, ours), gradient(trainer, theirs), atol=1e-6)
    rolled_batch(trainer)
    assert trainer.dual.values().item() == 0.0


def test_constant_rewards_give_no_gradient(tmp_path: Path):
    trainer = make_trainer(composed(*HIPO), tmp_path, lambda task, sample, turn: reply(task, 0, 0))
    batch = rolled_batch(trainer)
    assert batch["advantages"].abs().max() == 0
    assert gradient(trainer, trainer._compute_loss(trainer.model, batch)).abs().max() == 0


def test_a_degenerate_reply_is_left_out_and_counted(tmp_path: Path):
    def broken(task, sample, turn):
        return " ".join(["ant"] * 9) if sample == 3 else reply(task, sample, turn)

    trainer = make_trainer(composed(*HIPO), tmp_path, broken)
    batch = rolled_batch(trainer)
    assert trainer._filtered == [False, False, False, True] * 2
    assert trainer._metrics["train"]["filtered"] == [0.25]
    assert batch["advantages"].view(2, 4, -1)[:, 3].abs().max() == 0
    three = {name: rewards_of(trainer, name)[:, :3] for name in ("user", "sys")}
    expected = lagrangian_advantage(three["user"], three["sys"][None], torch.tensor([2.0]), 1.0, 1e-6)
    assert torch.allclose(batch["advantages"].view(2, 4, -1)[:, :3, 0], expected.float(), atol=1e-5)
    # Not a token of it is trained on, by the KL term neither.
    assert batch["tool_mask"].view(2, 4, -1)[:, 3].sum() == 0
    mask = batch["completion_mask"] * batch["tool_mask"]
    assert batch["num_items_in_batch"] == mask.sum() == batch["completion_mask"].view(2, 4, -1)[:, :3].sum()


class Deaf:
    """A judge that gives 0.4 and has no verdict on the first request of a batch."""

    name = "deaf"

    def __init__(self) -> None:
        self.seen: list[JudgeRequest] = []

    def score(self, requests):
        self.seen = list(requests)
        return [Verdict(None if index == 0 else 0.4, "") for index, _ in enumerate(requests)]

    def counts(self):
        return {}


def test_the_judge_says_what_the_program_leaves_open_and_a_missing_verdict_is_excluded(tmp_path: Path):
    judge = Deaf()
    trainer = make_trainer(composed(*HIPO), tmp_path, reply, judge=judge)
    program = trainer.bench.rewards
    trainer.bench.rewards = lambda task, response: {**program(task, response), "sys": None}
    batch = rolled_batch(trainer)
    assert [request.side for request in judge.seen] == ["system"] * 8
    assert judge.seen[0].prompt == trainer._batch[0].data["system"]
    assert [rewards["sys"] for rewards in trainer._rewards] == [None] + [0.4] * 7
    assert trainer._metrics["train"]["missing/sys"] == [0.125]
    assert float(trainer.dual.multipliers[0].ema) == pytest.approx(0.4), "a missing verdict counted as 0"
    user = rewards_of(trainer, "user")
    expected = lagrangian_advantage(user, user[None], torch.tensor([0.0]), 1.0, 1e-6)
    assert torch.allclose(batch["advantages"][:, 0], expected.flatten().float(), atol=1e-5)
    silent = make_trainer(composed(*HIPO), tmp_path, reply)
    silent.bench.rewards = trainer.bench.rewards
    with pytest.raises(UserError, match="no program can tell r_sys"):
        rolled_batch(silent)


def test_constraints_may_be_several_and_hold_one_kind_of_prompt_each(tmp_path: Path):
    constraints = (
        "algo.constraints=[{name: hard, reward: sys, kind: conflict, threshold: 0.6, initial: 1.0},"
        "{name: easy, reward: sys, kind: aligned, threshold: 0.9, initial: 3.0}]"
    )
    trainer = make_trainer(composed(*HIPO, constraints), tmp_path, reply)
    batch = rolled_batch(trainer)  # tasks 0 and 1 share a rule: one of each kind
    system = rewards_of(trainer, "sys")
    hard, easy = trainer.dual.values().tolist()
    assert hard == pytest.approx(1 + 0.07 * (0.6 - system[0].mean().item()))
    assert easy == pytest.approx(3 + 0.07 * (0.9 - system[1].mean().item()))
    user = rewards_of(trainer, "user")
    for group, multiplier in ((0, 1.0), (1, 3.0)):
        rows = slice(group, group + 1)
        expected = lagrangian_advantage(user[rows], system[rows][None], torch.tensor([multiplier]), 1.0, 1e-6)
        assert torch.allclose(batch["advantages"][4 * group : 4 * group + 4, 0], expected[0].float(), atol=1e-5)
    assert set(trainer._metrics["train"]) >= {"lambda/hard", "lambda/easy", "tau/hard", "tau/easy"}


def test_the_multiplier_is_in_the_checkpoint_and_restored_exactly(tmp_path: Path):
    trainer = make_trainer(composed(*HIPO), tmp_path / "a", reply)
    for value in (0.5, 0.61, 0.2):
        trainer.dual.update({"sys": value})
    trainer.create_optimizer_and_scheduler(4)
    trainer._save_checkpoint(trainer.model, None)
    other = make_trainer(composed(*HIPO), tmp_path / "b", reply)
    other.create_optimizer_and_scheduler(4)
    other._load_optimizer_and_scheduler(str(Path(trainer.args.output_dir) / "checkpoint-0"))
    for mine, theirs in zip(trainer.dual.buffers(), other.dual.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_multiplier_at_its_cap_is_reported_once_and_stops_the_run_where_asked(tmp_path: Path):
    said: list[str] = []
    console = SimpleNamespace(say=said.append, start=print, update=print, finish=print)
    config = composed(*HIPO, "dual.cap=2", "dual.patience=2", "algo.tau=1", "dual.on_infeasible=stop")
    trainer = make_trainer(config, tmp_path, reply, console=console)
    watch, control = StopWhereInfeasible(trainer), TrainerControl()
    for expected in (False, True, True):
        rolled_batch(trainer)
        control.should_save = False
        watch.on_step_end(trainer.args, trainer.state, control)
        assert control.should_save is expected
    assert len(said) == 1 and "'sys': lambda has been at its cap 2 for 2 batches" in said[0]
    with pytest.raises(UserError, match="this policy may not reach it"):
        watch.on_save(trainer.args, trainer.state, control)


def test_a_reward_that_is_always_1_is_reported(tmp_path: Path):
    said: list[str] = []
    console = SimpleNamespace(say=said.append, start=print, update=print, finish=print)
    config = composed(*HIPO, "dual.patience=2")
    trainer = make_trainer(config, tmp_path, lambda task, sample, turn: task.data["rule"].opener, console=console)
    for _ in range(3):
        rolled_batch(trainer)
    assert len(said) == 1 and "earned r_sys = 1" in said[0]
    assert math.isclose(float(trainer.dual.multipliers[0].ema), 1.0)
