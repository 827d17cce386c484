"""The HIPO trainer: one update by hand, its reductions, what is left out, its multiplier's state and its warnings."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl

from agentrl.benches import load_bench
from agentrl.benches.hif.proxy import user_proxy
from agentrl.core.console import RunConsole
from agentrl.core.errors import UserError
from agentrl.core.judge import JudgeRequest, Verdict
from agentrl.objectives.hipo import lagrangian_advantage
from agentrl.store.run import RunDirectory
from agentrl.trainers.callbacks import Record
from agentrl.trainers.constraints import StopWhereInfeasible
from agentrl.trainers.faults import NO_SIGNAL
from agentrl.trainers.hipo import HipoTrainer
from tests.support.helpers import composed, gradient, make_trainer, rolled_batch, rolled_with_trl_advantages, trl_loss

SMALL = (
    *("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "trainer.max_steps=4"),
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
    loss = trainer.compute_loss(trainer.model, batch)
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
    batch, advantages = rolled_with_trl_advantages(trainer)
    assert torch.allclose(batch["advantages"][:, 0], advantages, atol=1e-6)
    ours = trainer.compute_loss(trainer.model, batch)
    theirs = trl_loss(trainer, {**batch, "advantages": advantages})
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(gradient(trainer, ours), gradient(trainer, theirs), atol=1e-6)
    rolled_batch(trainer)
    assert trainer.dual.values().item() == 0.0


def test_constant_rewards_give_no_gradient(tmp_path: Path):
    trainer = make_trainer(composed(*HIPO), tmp_path, lambda task, sample, turn: reply(task, 0, 0))
    batch = rolled_batch(trainer)
    assert batch["advantages"].abs().max() == 0
    assert gradient(trainer, trainer.compute_loss(trainer.model, batch)).abs().max() == 0


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
    with pytest.raises(UserError, match="no program can grade r_sys"):
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


@pytest.mark.parametrize("method", ["hipo", "repo"])
def test_a_threshold_that_every_reply_meets_alike_is_reported(tmp_path: Path, method: str):
    said: list[str] = []
    console = SimpleNamespace(say=said.append, start=print, update=print, finish=print)
    config = composed(f"algo={method}", *HIPO[1:], "dual.patience=2")
    trainer = make_trainer(config, tmp_path, lambda task, sample, turn: task.data["rule"].opener, console=console)
    for _ in range(3):
        rolled_batch(trainer)
    measure, mean = {"hipo": ("r_sys", 1.0), "repo": ("min(r_sys, tau)", config.algo.tau)}[method]
    assert len(said) == 1 and f"all replies had the same {measure} and met the bound" in said[0]
    assert math.isclose(float(trainer.dual.multipliers[0].ema), mean)


# --- what is missing ----------------------------------------------------------------------------------------------


class Unreadable:
    """A judge whose verdicts on `sides` cannot be read; on the other, replies are graded by their length."""

    name = "unreadable"

    def __init__(self, *sides: str) -> None:
        self.sides = sides

    def score(self, requests):
        grades = [None if request.side in self.sides else len(request.response) % 7 / 7 for request in requests]
        return [Verdict(grade, "") for grade in grades]

    def counts(self):
        return {}


def without(bench: Any, *sides: str) -> None:
    """The bench's program says nothing of `sides`: a judge must."""
    program = bench.rewards
    bench.rewards = lambda task, response: {**program(task, response), **dict.fromkeys(sides)}


def logged_run(trainer: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The log lines of a whole training, and how far the weights moved."""
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert torch.isfinite(after).all(), "NaN has entered the weights"
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        assert all(value is not None and math.isfinite(value) for value in entry.values()), entry
    return entries, (after - before).abs().max()


@pytest.mark.parametrize(
    ("sides", "teaches"),
    [(("user",), True), (("system",), True), (("user", "system"), False)],
)
def test_a_run_goes_on_with_the_rewards_that_there_are(tmp_path: Path, sides: tuple[str, ...], teaches: bool):
    said: list[str] = []
    console = SimpleNamespace(say=said.append, start=print, update=print, finish=print)
    trainer = make_trainer(composed(*HIPO), tmp_path, reply, judge=Unreadable(*sides), console=console)
    without(trainer.bench, "user", "sys")
    entries, moved = logged_run(trainer)
    assert len(entries) == 4 and bool(moved > 0) is teaches
    for side, name in (("user", "user"), ("system", "sys")):
        lacking = side in sides
        assert [entry[f"missing/{name}"] for entry in entries] == [float(lacking)] * 4
        assert (f"r_{name}" in entries[0]) is not lacking
        warnings = [text for text in said if f"have no r_{name} (100%)" in text]
        assert [text.split()[1] for text in warnings] == (["8", "16", "32"] if lacking else [])
    assert ("reward" in entries[0]) is ("user" not in sides)
    assert [entry[NO_SIGNAL] for entry in entries] == [float(not teaches)] * 4
    if "system" in sides:
        assert math.isnan(float(trainer.dual.multipliers[0].ema)) and trainer.dual.values().item() == 2.0


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("empty", [["algo.min_tokens=1"], ["algo.max_repetition=0.1"]])
def test_a_batch_of_which_every_reply_is_left_out_changes_nothing(tmp_path: Path, empty: list[str], aggregation: str):
    text = "" if "min_tokens" in empty[0] else " ".join(["ant"] * 9)
    level = "algo.importance_level=token" if aggregation == "token" else "algo.importance_level=sequence"
    values = [*HIPO[:-3], *empty, "algo.kl_coef=0.05", level, f"algo.loss_aggregation={aggregation}"]
    trainer = make_trainer(composed(*values, "trainer.max_steps=2"), tmp_path, lambda *_: text)
    entries, moved = logged_run(trainer)
    assert moved == 0
    assert [entry["filtered"] for entry in entries] == [1.0, 1.0] and entries[0][NO_SIGNAL] == 1.0
    assert not {"r_user", "r_sys", "reward", "violation_rate"} & set(entries[0])


def test_four_empty_replies_to_one_prompt_do_not_end_a_run(tmp_path: Path):
    config = composed(*HIPO, "trainer.prompts_per_batch=1", "trainer.minibatch_prompts=1")
    said = 0

    def sometimes(task: Any, sample: int, turn: int) -> str:
        nonlocal said
        said += 1
        return "" if said <= 4 else reply(task, sample, turn)

    entries, moved = logged_run(make_trainer(config, tmp_path, sometimes))
    assert len(entries) == 4 and moved > 0
    assert "r_user" not in entries[0] and "r_user" in entries[1]


def test_what_the_file_of_metrics_and_the_screen_make_of_a_batch_without_r_user(tmp_path: Path):
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", *HIPO))
    assert run is not None
    trainer = make_trainer(run.config(), tmp_path, reply, judge=Unreadable("user"))
    without(trainer.bench, "user")
    with RunConsole() as screen:
        trainer.add_callback(Record(run, screen))
        trainer.train()
    lines = run.read_metrics()
    assert len(lines) == 4 and all("reward" not in line and "r_user" not in line for line in lines)
    assert all(line["missing/user"] == 1.0 and math.isfinite(line["r_sys"]) for line in lines)


# --- what is logged -----------------------------------------------------------------------------------------------


def test_the_stand_in_is_never_logged_as_r_user(tmp_path: Path):
    def willing(task: Any, sample: int, turn: int) -> str:
        return "sure, name" if sample % 2 else "sure"

    trainer = make_trainer(composed(*HIPO), tmp_path, willing)
    without(trainer.bench, "user")
    rolled_batch(trainer)
    metrics = trainer._metrics["train"]
    proxies = [user_proxy(task.data["user"], willing(task, row, 0)) for row, task in enumerate(trainer._batch)]
    assert set(proxies) == {0.0, 1.0}
    assert metrics["user_proxy"] == [pytest.approx(sum(proxies) / 8)] == metrics["reward"]
    assert {"user_proxy/conflict", "user_proxy/aligned"} <= set(metrics)
    assert not [name for name in metrics if name.startswith("r_user")]
    for note in trainer._rollout_notes():
        assert "r_user" not in note and note["user_proxy"] in proxies


def test_the_rate_of_violations_reads_the_thresholds_of_the_multipliers(tmp_path: Path):
    constraints = (
        "algo.constraints=[{name: hard, reward: sys, kind: conflict, threshold: 0.35, initial: 1.0},"
        "{name: served, reward: user, kind: aligned, threshold: 0.5, initial: 3.0}]"
    )
    trainer = make_trainer(composed(*HIPO, "algo.tau=0.99", constraints), tmp_path, reply)
    rolled_batch(trainer)
    (conflict, aligned), metrics = (rewards_of(trainer, "sys")[0], rewards_of(trainer, "user")[1]), trainer._metrics
    hard, served = (conflict < 0.35).double().mean().item(), (aligned < 0.5).double().mean().item()
    assert 0 < hard < 1 and 0 < served < 1 and hard != (conflict < 0.99).double().mean().item()
    logged = metrics["train"]
    assert logged["violation/hard"] == logged["violation_rate/conflict"] == [hard]
    assert logged["violation/served"] == logged["violation_rate/aligned"] == [served]
    assert logged["violation_rate"] == [(hard + served) / 2]


def test_the_rate_of_violations_is_over_replies_of_which_every_reward_is_known(tmp_path: Path):
    constraints = (
        "algo.constraints=[{name: rule, reward: sys, threshold: 0.5, initial: 1.0, kind: null},"
        "{name: served, reward: user, threshold: 0.5, initial: 1.0, kind: null}]"
    )
    trainer = make_trainer(composed(*HIPO, constraints), tmp_path, reply, judge=Unreadable("user"))
    without(trainer.bench, "user")
    rolled_batch(trainer)
    system = rewards_of(trainer, "sys").flatten()
    assert trainer._metrics["train"]["violation/rule"] == [(system < 0.5).double().mean().item()]
    assert "violation/served" not in trainer._metrics["train"]
    assert "violation_rate" not in trainer._metrics["train"]  # r_sys convicts some, but acquits nobody
    full = trainer._rewards
    trainer._rewards = [{**one, "user": 1.0 if row % 4 < 3 else None} for row, one in enumerate(full)]
    told = [row for row in range(len(full)) if row % 4 < 3]
    rate = sum(full[row]["sys"] < 0.5 for row in told) / len(told)
    assert 0 < rate < 1 and trainer._constraints_to_log()["violation_rate"] == pytest.approx(rate)


def test_a_constraint_on_a_kind_that_no_training_task_is_of_is_refused():
    tasks = load_bench(composed(*HIPO).bench).tasks("train")
    aligned = [task for task in tasks if task.data["kind"] == "aligned"]
    given = "algo.constraints=[{name: hard, reward: sys, kind: conflict, threshold: 0.6, initial: 1.0}]"
    config = composed(*HIPO, given)
    HipoTrainer.check_tasks(config, tasks)
    with pytest.raises(UserError, match=r"^algo\.constraints\.0\.kind=conflict: bench=minihif has .* only aligned;"):
        HipoTrainer.check_tasks(config, aligned)


def test_r_sys_alone_is_a_signal(tmp_path: Path):
    """All replies serve the user alike and keep the rule differently: only r_sys teaches, by its multiplier."""

    def served(task: Any, sample: int, turn: int) -> str:
        return " ".join([*([task.data["rule"].opener] if sample % 2 else []), *task.data["items"]])

    for multiplier, silent in ((2, 0.0), (0, 1.0)):
        values = (*HIPO[:-3], f"dual.initial={multiplier}", "dual=fixed")
        trainer = make_trainer(composed(*values), tmp_path, served)
        batch = rolled_batch(trainer)
        assert rewards_of(trainer, "user").std() == 0 and rewards_of(trainer, "sys").std(1).min() > 0
        assert trainer._metrics["train"][NO_SIGNAL] == trainer._metrics["train"]["frac_reward_zero_std"] == [silent]
        assert bool(batch["advantages"].any()) is not bool(silent)
