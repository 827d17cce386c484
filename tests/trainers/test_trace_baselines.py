"""CHORD and LUFFY: their terms by hand and by finite differences, and the trainers against what they reduce to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentrl.core.errors import UserError
from agentrl.objectives.chord import chord_sft_loss, mixed_loss, phi
from agentrl.objectives.luffy import expert_loss, member_shares, mixed_advantages, shaped_ratio
from agentrl.objectives.schedules import warmup_cosine
from agentrl.rewards.turns import turn_rewards
from agentrl.trainers.luffy import expert_trajectory
from agentrl.trainers.sft import trace_dataset
from tests.rollout.test_rollout import expert_script
from tests.runs.test_runs import killed_copy, lines, only_run, run
from tests.support.helpers import log_probs, make_trainer, small, trl_loss
from tests.support.methods import IMITATING, TRACED
from tests.trainers.test_trainers import gradient, rolled_batch

PLAIN = ("algo.entropy_coef=0", "algo.kl_coef=0")
HALF, FIFTH = math.log(0.5), math.log(0.2)
LOGPS = torch.tensor([[HALF, FIFTH, math.nan], [FIFTH, HALF, HALF]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


def slopes(function, at: Tensor) -> Tensor:
    """Gradient of a scalar function by central differences; float64."""
    found = torch.zeros_like(at)
    for index in range(at.numel()):
        step = torch.zeros_like(at).flatten()
        step[index] = 1e-6
        step = step.view_as(at)
        found.view(-1)[index] = (function(at + step) - function(at - step)) / 2e-6
    return found


# --- CHORD's terms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (5, 0.45),  # half of the warm-up: half of the peak
        (10, 0.9),
        (60, 0.05 + 0.85 * (1 + math.cos(math.pi / 4)) / 2),  # a quarter of the decay
        (110, 0.475),  # half of it: the mean of peak and valley
        (210, 0.05),
        (1000, 0.05),
    ],
)
def test_mu_at_its_corners(step: int, expected: float) -> None:
    assert warmup_cosine(step, 0.9, 0.05, warmup_steps=10, decay_steps=200) == pytest.approx(expected, abs=1e-12)


def test_mu_without_warmup_or_decay() -> None:
    assert warmup_cosine(0, 0.9, 0.05, 0, 200) == 0.9
    assert warmup_cosine(0, 0.9, 0.05, 0, 0) == warmup_cosine(7, 0.9, 0.05, 0, 0) == 0.05
    assert [warmup_cosine(step, 0.1, 0.1, 0, 200) for step in (0, 77, 300)] == pytest.approx([0.1] * 3)
    with pytest.raises(ValueError, match="must be >= 0"):
        warmup_cosine(-1, 0.9, 0.05, 0, 200)


def test_chords_sft_loss_by_hand() -> None:
    uniform, weight = chord_sft_loss(LOGPS, MASK, "uniform")
    assert uniform.tolist() == pytest.approx([-(HALF + FIFTH) / 2, -(2 * HALF + FIFTH) / 3])
    assert torch.equal(weight, MASK.to(weight))
    # phi(0.5) = 0.25, phi(0.2) = 0.16; divided by the number of tokens, not by the sum of their weights
    weighed, weight = chord_sft_loss(LOGPS, MASK, "phi")
    expected = [-(0.25 * HALF + 0.16 * FIFTH) / 2, -(0.5 * HALF + 0.16 * FIFTH) / 3]
    assert weighed.tolist() == pytest.approx(expected) and float(weight.sum()) == pytest.approx(3 * 0.25 + 2 * 0.16)
    assert chord_sft_loss(LOGPS, torch.zeros_like(MASK), "phi")[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="unknown token weight"):
        chord_sft_loss(LOGPS, MASK, "entropy")


def test_phi_is_held_in_the_gradient() -> None:
    logps = LOGPS.clone().requires_grad_()
    chord_sft_loss(logps, MASK, "phi")[0].sum().backward()
    assert logps.grad is not None
    held = phi(LOGPS.nan_to_num(0.0))
    expected = slopes(lambda x: float(-((held * x * MASK).sum(1) / MASK.sum(1)).sum()), LOGPS.nan_to_num(0.0))
    assert torch.allclose(logps.grad, expected, atol=1e-8)
    assert logps.grad[0, 2] == 0  # outside the mask


def test_mu_mixes_two_losses() -> None:
    grpo, sft = torch.tensor(2.0), torch.tensor(10.0)
    assert [float(mixed_loss(grpo, sft, mu)) for mu in (0, 0.25, 1)] == [2, 4, 10]
    with pytest.raises(ValueError, match="not in"):
        mixed_loss(grpo, sft, 1.1)


# --- LUFFY's terms --------------------------------------------------------------------------------------------------


def test_shaped_ratio_by_hand() -> None:
    assert shaped_ratio(torch.tensor([1.0, 0.5, 0.1, 1e-9]).log(), 0.1).tolist() == pytest.approx(
        [1 / 1.1, 0.5 / 0.6, 0.5, 1e-8], rel=1e-5
    )
    with pytest.raises(ValueError, match="above 0"):
        shaped_ratio(LOGPS, 0)


def test_expert_loss_by_hand_and_by_finite_differences() -> None:
    advantages = torch.tensor([3.0, -1.0], dtype=torch.float64)
    logps = LOGPS.clone().requires_grad_()
    losses, weight = expert_loss(logps, MASK, advantages, 0.1)
    at_half, at_fifth = 0.5 / 0.6, 0.2 / 0.3
    assert losses.tolist() == pytest.approx([-3 * (at_half + at_fifth) / 2, (2 * at_half + at_fifth) / 3])
    assert float(weight.sum()) == pytest.approx(3 * at_half + 2 * at_fifth)
    losses.sum().backward()
    assert logps.grad is not None
    expected = slopes(lambda x: float(expert_loss(x, MASK, advantages, 0.1)[0].sum()), LOGPS.nan_to_num(0.0))
    assert torch.allclose(logps.grad, expected, atol=1e-8)
    # The chain rule in the docstring: A gamma p / (p + gamma)^2, here over two tokens.
    assert float(logps.grad[0, 1]) == pytest.approx(-3 * 0.1 * 0.2 / 0.3**2 / 2)
    assert expert_loss(LOGPS, torch.zeros_like(MASK), advantages, 0.1)[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="must both be"):
        expert_loss(LOGPS, MASK, advantages[:1], 0.1)


def test_the_expert_is_a_member_of_the_group() -> None:
    returns = torch.tensor([[0.0, 1.0, 1.0], [1.0, 2.0, 6.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    expert = torch.tensor([4.0, math.nan, 2.0], dtype=torch.float64)
    rollouts, experts = mixed_advantages(returns, expert)
    # means over the members: 6 / 4, without an expert 9 / 3, and a constant group
    assert rollouts.tolist() == [[-1.5, -0.5, -0.5], [-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    assert experts[0] == 2.5 and torch.isnan(experts[1]) and experts[2] == 0
    assert member_shares(experts, 3).tolist() == [0.75, 1.0, 0.75]


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(-3, 3))
def test_advantages_of_all_members_sum_to_zero(returns: list[float], expert: float) -> None:
    rollouts, experts = mixed_advantages(torch.tensor([returns]).double(), torch.tensor([expert]).double())
    assert float(rollouts.sum() + experts.sum()) == pytest.approx(0, abs=1e-5)


# --- the trainers ---------------------------------------------------------------------------------------------------


def chord(out: Path, *overrides: str):
    return make_trainer(small("algo=chord", *PLAIN, *overrides), out, expert_script)


def held(mu: float) -> tuple[str, str]:
    return f"algo.mu.peak={mu}", f"algo.mu.valley={mu}"


def test_chord_at_mu_0_is_grpo(tmp_path: Path) -> None:
    ours = chord(tmp_path, *held(0))
    grpo = make_trainer(small("algo=grpo", *PLAIN), tmp_path, expert_script)
    batch, theirs = rolled_batch(ours), rolled_batch(grpo)
    assert torch.equal(batch["completion_ids"], theirs["completion_ids"])
    loss, reference = ours.compute_loss(ours.model, batch), grpo.compute_loss(grpo.model, theirs)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)
    found = gradient(ours, loss)
    assert torch.allclose(found, gradient(grpo, reference), atol=1e-6) and found.abs().max() > 1e-3


def test_chord_at_mu_1_is_sft(tmp_path: Path) -> None:
    """The loss of algo=sft on the same prompt, which is one trace: TRL averages over the tokens of all."""
    ours = chord(tmp_path, *held(1), "trainer.prompts_per_batch=1", "trainer.minibatch_prompts=1")
    batch = rolled_batch(ours, prompts=1)
    components = ["reasoning", "tool_call", "answer"]
    row = trace_dataset(ours.chat, ours.bench, ours.tasks[:1], components, ours.expert_trace)[0]
    labels = torch.tensor([row["labels"]])
    reference = ours.model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
    loss = ours.compute_loss(ours.model, batch)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    assert torch.allclose(gradient(ours, loss), gradient(ours, reference), atol=1e-5)
    assert (labels != -100).sum() == ours.trace_weights(batch["trace"][0]).sum() > 0


def test_chord_mixes_and_logs_both_terms(tmp_path: Path) -> None:
    ours = chord(tmp_path, *held(0.25), "algo.token_weight=phi")
    loss = ours.compute_loss(ours.model, rolled_batch(ours, prompts=1)).item()
    logged = {name: values[-1] for name, values in ours._metrics["train"].items()}
    assert loss == pytest.approx(0.75 * logged["loss/rl"] + 0.25 * logged["loss/sft"], abs=1e-6)
    assert logged["anneal/mu"] == 0.25 and 0 < logged["expert/weight"] < 0.25


@pytest.mark.parametrize("algo", IMITATING)
def test_micro_batches_add_up_even_where_they_cut_a_group(tmp_path: Path, algo: str) -> None:
    ours = make_trainer(small(f"algo={algo}", *PLAIN), tmp_path, expert_script)
    batch = rolled_batch(ours)
    whole = ours.compute_loss(ours.model, batch).item()
    quarters = [
        {k: v[s] if isinstance(v, list) or (v is not None and v.dim()) else v for k, v in batch.items()}
        for s in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))
    ]
    assert [trace is not None for part in quarters for trace in part["trace"]] == [True, False, False, False] * 2
    ours.current_gradient_accumulation_steps = 4
    assert sum(ours.compute_loss(ours.model, part).item() for part in quarters) == pytest.approx(whole, abs=1e-6)


def test_mu_moves_with_the_updates_and_needs_no_state(tmp_path: Path) -> None:
    ours = chord(tmp_path, "algo.mu.warmup_steps=1", "algo.mu.decay_steps=2")
    batch, seen = rolled_batch(ours, prompts=1), []
    for ours.state.global_step in range(4):
        ours.compute_loss(ours.model, batch)
        seen.append(ours._metrics["train"]["anneal/mu"][-1])
    assert seen == pytest.approx([0, 0.9, 0.475, 0.05])


def luffy(out: Path, *overrides: str, script=expert_script):
    return make_trainer(small("algo=luffy", *PLAIN, *overrides), out, script)


def unclipped(trainer, batch, advantages: Tensor) -> Tensor:
    """Loss (B,) of every rollout: -(A / n) sum of ratios, from the model's own log-probs."""
    logps = log_probs(trainer, batch)
    mask = batch["completion_mask"] * batch["tool_mask"]
    old = batch.get("old_per_token_logps")
    ratio = torch.exp(logps - (logps.detach() if old is None else old)) * mask
    return -advantages.flatten() * ratio.sum(1) / mask.sum(1)


def test_luffy_without_a_trace_is_grpo_without_clip_and_std(tmp_path: Path) -> None:
    several = ("trainer.minibatch_prompts=1",)  # so that old log-probs are kept
    ours = luffy(tmp_path, *several)
    ours.expert_trace = lambda task: None
    batch = rolled_batch(ours)
    with torch.no_grad():  # off the policy that sampled, so that ratios leave the clip's range
        for parameter in ours.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    returns = torch.tensor([sum(rewards) for rewards in ours._turn_rewards]).view(-1, 4)
    reference = unclipped(ours, batch, returns - returns.mean(1, keepdim=True)).mean()
    loss = ours.compute_loss(ours.model, batch)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)
    assert torch.allclose(gradient(ours, loss), gradient(ours, reference), atol=1e-5)
    assert trl_loss(ours, batch).item() == pytest.approx(loss.item(), rel=1e-4)  # TRL's with an infinite epsilon
    unbounded, ours.policy_settings = ours.policy_settings(), lambda: replace(unbounded, clip_eps=0.2)
    assert abs(ours.compute_loss(ours.model, batch).item() - loss.item()) > 1e-4


def test_luffys_loss_by_hand(tmp_path: Path) -> None:
    ours = luffy(tmp_path)
    batch = rolled_batch(ours)
    members = []
    for first in (0, 4):
        trace, task = batch["trace"][first], ours._batch[first]
        returns = torch.tensor([sum(rewards) for rewards in ours._turn_rewards[first : first + 4]])
        # The expert earns 1 a call and 1 for its answer, as the rollout that follows it does.
        best = len(ours.expert_trace(task).turns) + 1.0
        assert returns[0] == best
        mean = (returns.sum().item() + best) / 5
        ids = torch.tensor([trace.prompt_ids + trace.ids])
        logps = torch.log_softmax(ours.model(input_ids=ids).logits[0, :-1].float(), -1)
        chosen = logps.gather(1, ids[0, 1:, None])[len(trace.prompt_ids) - 1 :, 0]
        p = chosen.exp()[ours.trace_weights(trace).bool()]
        rollouts = {k: v[first : first + 4] for k, v in batch.items() if isinstance(v, Tensor) and v.dim()}
        members += [*unclipped(ours, rollouts, returns - mean), -(best - mean) * (p / (p + 0.1)).mean()]
        assert batch["expert_advantage"][first : first + 4].tolist() == pytest.approx([best - mean] * 4)
    loss, reference = ours.compute_loss(ours.model, batch), torch.stack(members).mean()
    assert len(members) == 10 and loss.item() == pytest.approx(reference.item(), abs=1e-5)
    assert torch.allclose(gradient(ours, loss), gradient(ours, reference), atol=1e-5)
    metrics = {name: values[-1] for name, values in ours._metrics["train"].items()}
    written = sum(int(ours.trace_weights(batch["trace"][first]).sum()) for first in (0, 4))
    sampled = int((batch["completion_mask"] * batch["tool_mask"]).sum())
    assert metrics["expert/share"] == pytest.approx(written / (written + sampled))
    assert 0 < metrics["expert/weight"] < 1 / 1.1 and metrics["expert/advantage"] > 0


def test_luffy_learns_from_the_expert_where_all_rollouts_fail_alike(tmp_path: Path) -> None:
    def stubborn(task, sample, turn):
        return "<answer>Nobody</answer>"

    ours = luffy(tmp_path, script=stubborn)
    loss = ours.compute_loss(ours.model, rolled_batch(ours))
    assert gradient(ours, loss).abs().max() > 1e-4
    logged = ours._metrics["train"]
    assert logged["expert/advantage"][-1] > 0 and logged["loss/expert"][-1] < 0 < logged["loss/rl"][-1]


@pytest.mark.parametrize("reward", ["matching", "ftrl", "toolrl"])
def test_the_expert_earns_what_a_rollout_that_follows_it_earns(tmp_path: Path, reward: str) -> None:
    ours = luffy(tmp_path, f"reward={reward}")
    rolled_batch(ours, prompts=1)
    task = ours._batch[0]
    trace = ours.expert_trace(task)
    played = expert_trajectory(trace, ours.chat.reasoning)
    assert turn_rewards(played, trace.calls, task.answer, ours.config.reward, task.golds) == ours._turn_rewards[0]
    assert played.final_text == ours._trajectories[0].final_text
    assert [c.observation for c in played.calls] == [c.observation for c in ours._trajectories[0].calls]


@pytest.mark.parametrize("algo", TRACED)
def test_a_bench_without_traces_is_refused(tmp_path: Path, algo: str) -> None:
    from agentrl.benches import load_bench
    from agentrl.core.console import RunConsole
    from agentrl.core.stop import StopRequest
    from agentrl.models.loading import load_chat, load_model, needs_of
    from agentrl.store.run import RunDirectory
    from agentrl.trainers.build import build_trainer

    config = small(f"algo={algo}")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")
    chat, model = load_chat(config.model, needs_of(tasks)), load_model(config.model)
    with pytest.raises(UserError, match="no training task has an expert trace; use algo=grpo"):
        build_trainer(
            *(config, RunDirectory(tmp_path), bench, chat, model, tasks, StopRequest(), RunConsole()),
            expert_trace=lambda task: None,
        )


OWN_METRICS = {
    "chord": ("anneal/mu", "loss/sft", "loss/rl"),
    "luffy": ("expert/share", "expert/weight", "loss/expert", "loss/rl"),
    "srft": ("expert/share", "expert/weight", "loss/expert", "loss/sft", "loss/rl"),
    "hint_grpo": ("anneal/hint", "hint/failed", "hint/groups"),
}


@pytest.mark.slow
@pytest.mark.parametrize("algo", [name for name in TRACED if name != "pact"])
def test_a_run_and_its_resumption(tmp_path: Path, algo: str) -> None:
    options = (f"algo={algo}", "trainer.save_steps=2")
    run(tmp_path / "whole", *options)
    folder = only_run(tmp_path / "whole")
    metrics = lines(folder / "metrics.jsonl")
    assert json.loads((folder / "summary.json").read_text())["algo"] == algo and len(metrics) == 4
    assert all(math.isfinite(row[name]) for row in metrics for name in (*OWN_METRICS.get(algo, ()), "grad_norm"))
    killed = killed_copy(folder, tmp_path / "killed", "checkpoint-4")
    run(tmp_path / "killed", *options)
    assert (killed / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
