"""OPSD, SDAR and RLSD: their terms by hand, and the trainers against the losses that they should have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.objectives.distillation import credit_weights, falling_share, gated_gap, reverse_kl
from tests.support.helpers import gradient, log_probs, make_trainer, rolled_batch, small

PLAIN = ("algo.entropy_coef=0", "algo.kl_coef=0")
STUDENT = torch.tensor([[0.5, 0.2]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.25, 0.4]], dtype=torch.float64).log()


def half_right(task: Any, sample: int, turn: int) -> str:
    return f"<answer>{task.answer if sample % 2 else 'Nobody'}</answer>"


def test_the_terms_by_hand() -> None:
    student = STUDENT.clone().requires_grad_()
    reverse_kl(student, TEACHER).sum().backward()
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([math.log(2), -math.log(2)])  # -d
    student.grad = None
    gap = gated_gap(student, TEACHER, 5.0)
    gates = [1 / (1 + 2**5), 1 / (1 + 2**-5)]
    assert gap[0].tolist() == pytest.approx([-math.log(2) * gates[0], math.log(2) * gates[1]])
    gap.sum().backward()
    assert student.grad[0].tolist() == pytest.approx([-gates[0], -gates[1]])


def test_the_gradient_is_that_of_the_reverse_kl() -> None:
    """In expectation over the student's own tokens."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    teacher = teacher.log_softmax(-1)
    student = logits.log_softmax(-1)
    exact = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits, retain_graph=True)[0]
    sampled = (student.exp().detach() * reverse_kl(student, teacher)).sum()
    assert torch.allclose(torch.autograd.grad(sampled, logits)[0], exact)


def test_the_credit_of_tokens_by_hand() -> None:
    d = torch.tensor([[0.1, -0.1, 2.0, -2.0]])
    good, bad = torch.ones(1, 4), -torch.ones(1, 4)
    up, down = math.exp(0.1), math.exp(-0.1)
    assert credit_weights(good, d, 1.0, 0.2)[0].tolist() == pytest.approx([up, down, 1.2, 0.8])
    assert credit_weights(bad, d, 1.0, 0.2)[0].tolist() == pytest.approx([down, up, 0.8, 1.2])
    assert credit_weights(good, d, 0.5, 0.2)[0].tolist() == pytest.approx([(1 + up) / 2, (1 + down) / 2, 1.1, 0.9])
    assert [falling_share(0.5, step, 50) for step in (0, 25, 50, 99)] == [0.5, 0.25, 0, 0]
    assert falling_share(0.5, 0, 0) == 0


@pytest.mark.parametrize("algo", ["opsd", "sdar"])
def test_the_losses_of_the_trainers(algo: str, tmp_path: Path) -> None:
    """One network under both contexts; the term is a mean over the tokens of a rollout, then over rollouts."""
    trainer = make_trainer(small(f"algo={algo}", "algo.rl_coef=0", "algo.coef=0.5", *PLAIN), tmp_path, half_right)
    batch = rolled_batch(trainer)
    mask = batch["completion_mask"] * batch["tool_mask"]
    context = [trainer.context_with_trace(task) for task in trainer._batch]
    width = max(map(len, context))
    shown = {
        "shown_ids": torch.tensor([[0] * (width - len(one)) + one for one in context]),
        "shown_mask": torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in context]),
    }
    with torch.no_grad():
        teacher = log_probs(trainer, {**batch, **shown}, "shown")
    assert torch.allclose(batch["teacher_logps"] * mask, teacher * mask, atol=1e-3)
    student = log_probs(trainer, batch)
    values = reverse_kl(student, teacher) if algo == "opsd" else gated_gap(student, teacher, 5.0)
    expected = 0.5 * ((values * mask).sum(1) / mask.sum(1)).mean()
    found = trainer.compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    assert torch.allclose(gradient(trainer, found), gradient(trainer, expected), atol=1e-3)


@pytest.mark.parametrize(
    "keys",
    [("algo=opsd", "algo.rl_coef=1", "algo.coef=0"), ("algo=sdar", "algo.coef=0"), ("algo=rlsd", "algo.share=0")],
)
def test_each_reduces_to_grpo(keys: tuple[str, ...], tmp_path: Path) -> None:
    gradients = []
    for chosen in (keys, ("algo=grpo",)):
        trainer = make_trainer(small(*chosen, *PLAIN), tmp_path / chosen[0], half_right)
        gradients.append(gradient(trainer, trainer.compute_loss(trainer.model, rolled_batch(trainer))))
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, atol=1e-6)


def test_rlsd_weighs_the_advantages_of_tokens(tmp_path: Path) -> None:
    """At l = 1 each token has its weight; at l = 0, as under GRPO, all tokens of a rollout have one advantage."""
    found = {}
    for share in (0, 1):
        trainer = make_trainer(small("algo=rlsd", f"algo.share={share}", *PLAIN), tmp_path / str(share), half_right)
        found[share] = rolled_batch(trainer)
        assert trainer._metrics["train"]["anneal/share"] == [share]
    batch, on = found[1], (found[1]["completion_mask"] * found[1]["tool_mask"]).bool()
    with torch.no_grad():
        shift = batch["teacher_logps"] - log_probs(trainer, batch)
    weights = credit_weights(found[0]["advantages"], shift, 1.0, 0.2)
    assert torch.allclose(batch["advantages"][on], (found[0]["advantages"] * weights)[on], atol=1e-3)
    assert not torch.allclose(batch["advantages"][on], found[0]["advantages"][on], atol=1e-3)
