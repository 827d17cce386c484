"""SRFT's trainer against its loss written out, and against what it reduces to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rollout.test_rollout import expert_script
from tests.support.helpers import gradient, log_probs, make_trainer, rolled_batch, small

PLAIN = ("algo.entropy_coef=0", "algo.kl_coef=0")


def srft(out: Path, *overrides: str, script: Any = expert_script) -> Any:
    return make_trainer(small("algo=srft", *PLAIN, *overrides), out, script)


def test_without_traces_and_weights_it_is_grpo(tmp_path: Path) -> None:
    gradients = []
    for keys in (("algo=srft", "algo.positive_coef=1", "algo.positive_slope=0"), ("algo=grpo",)):
        trainer = make_trainer(small(*keys, *PLAIN), tmp_path / keys[0], expert_script)
        trainer.expert_trace = lambda task: None
        gradients.append(gradient(trainer, trainer.compute_loss(trainer.model, rolled_batch(trainer))))
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("shaping", [None, 0.1])
def test_the_loss_by_hand(shaping: float | None, tmp_path: Path) -> None:
    ours = srft(tmp_path, f"algo.shaping={'null' if shaping is None else shaping}")
    batch = rolled_batch(ours)
    rollouts, demonstrations = [], []
    for first in (0, 4):
        trace, task = batch["trace"][first], ours._batch[first]
        returns = torch.tensor([sum(rewards) for rewards in ours._turn_rewards[first : first + 4]])
        best = len(ours.expert_trace(task).turns) + 1.0  # 1 a call and 1 for the answer
        members = torch.cat([returns, torch.tensor([best])])
        advantages = (members - members.mean()) / (members.std() + 1e-6)
        ids = torch.tensor([trace.prompt_ids + trace.ids])
        spread = torch.log_softmax(ours.model(input_ids=ids).logits[0, len(trace.prompt_ids) - 1 : -1].float(), -1)
        on = ours.trace_weights(trace).bool()
        chosen = spread.gather(1, ids[0, len(trace.prompt_ids) :, None])[on, 0]
        entropies = -(spread.exp() * spread).sum(-1)[on].detach()
        p = chosen.exp()
        ratio = p if shaping is None else p / (p + shaping)
        demonstrations.append((-0.5 * (-entropies).exp() * chosen).mean() - advantages[4] * ratio.mean())
        rows = {k: v[first : first + 4] for k, v in batch.items() if isinstance(v, torch.Tensor) and v.dim()}
        logps, mask = log_probs(ours, rows), rows["completion_mask"] * rows["tool_mask"]
        plain = entropy_of(ours, rows).detach()
        weights = torch.where(advantages[:4, None] > 0, 0.1 * plain.exp(), torch.ones_like(plain))
        loss = -advantages[:4, None] * weights * torch.exp(logps - logps.detach()) * mask
        rollouts += [*(loss.sum(1) / mask.sum(1))]
    reference = torch.stack(rollouts).mean() + torch.stack(demonstrations).mean()
    found = ours.compute_loss(ours.model, batch)
    assert found.item() == pytest.approx(reference.item(), abs=2e-5)
    assert torch.allclose(gradient(ours, found), gradient(ours, reference), atol=2e-5)
    logged = {name: values[-1] for name, values in ours._metrics["train"].items()}
    assert logged["loss/rl"] + logged["loss/sft"] + logged["loss/expert"] == pytest.approx(found.item(), abs=1e-5)
    assert 0 < logged["expert/weight"] < 0.5


def entropy_of(trainer: Any, batch: Any) -> torch.Tensor:
    """Entropies (B, C) of the policy at the sampled tokens."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
    spread = torch.log_softmax(logits.float(), -1)
    return -(spread.exp() * spread).sum(-1)[:, -batch["completion_ids"].shape[1] :]


def test_it_imitates_where_all_members_earn_the_same(tmp_path: Path) -> None:
    def perfect(task: Any, sample: int, turn: int) -> str:
        return expert_script(task, 0, turn)

    ours = srft(tmp_path, script=perfect)
    batch = rolled_batch(ours)
    assert not batch["advantages"].any() and not batch["expert_advantage"].any()
    assert all(ours.teaches(row, batch["advantages"]) for row in (0, 4))
    assert gradient(ours, ours.compute_loss(ours.model, batch)).norm() > 1e-4
    ours.config.algo.sft_coef = 0.0
    assert not ours.teaches(0, batch["advantages"])
    assert gradient(ours, ours.compute_loss(ours.model, batch)).norm() == 0
