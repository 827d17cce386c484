"""Variants of PACT that the paper lacks: each by hand, and in the trainer against the loss that it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.objectives.pact import adaptive_q, anchor_gates, conditioned_weights
from agentrl.objectives.policy import PolicyBatch, PolicySettings, policy_loss
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import gradient, log_probs, make_trainer, rolled_batch, small

KEYS = ("algo.sft_coef=0", "algo.entropy_coef=0", "algo.advantage.kind=trajectory")
H = torch.tensor([[0.9, 0.005, 0.02, 0.3, 0.004]]).log()
X = torch.tensor([[0.3, 0.5, 0.01, 0.6, 0.002]]).log()
A = torch.tensor([[1.0, -1.0, -1.0, 0.0, 2.0]])


def half_right(task: Any, sample: int, turn: int) -> str:
    return f"<answer>{task.answer if sample % 2 else 'Nobody'}</answer>"


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_weights_of_tokens_by_hand() -> None:
    assert conditioned_weights(H, A).tolist() == [[1, 1, 1, 1, 1]]
    assert conditioned_weights(H, A, "positive").tolist() == [[1, 0, 0, 0, 1]]
    assert conditioned_weights(H, A, floor=0.01).tolist() == [[1, 0, 1, 1, 1]]  # a good token is never left out
    assert conditioned_weights(H, A, under_x=X)[0].tolist() == pytest.approx([1, 0.01, 1, 0.5, 1])
    assert conditioned_weights(H, A, "positive", 0.5, X)[0].tolist() == pytest.approx([1, 0, 0, 0, 1])
    assert not conditioned_weights(H.clone().requires_grad_(), A, floor=0.1).requires_grad
    with pytest.raises(ValueError, match="unknown selection"):
        conditioned_weights(H, A, "negative")  # type: ignore[arg-type]


def test_dual_clipping_bounds_the_loss_and_stops_the_gradient_of_bad_tokens_alone() -> None:
    logps = torch.tensor([[0.8, 0.8, 0.8, 0.1]]).log().requires_grad_()
    old = torch.tensor([[0.1, 0.1, 0.4, 0.4]]).log()  # r = 8, 8, 2, 1/4
    advantages = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    batch = PolicyBatch(logps, advantages, torch.ones(1, 4), torch.zeros(1, 4), old)
    plain, _ = policy_loss(batch, PolicySettings())
    assert plain.item() == pytest.approx((-1.2 + 8 + 2 + 0.8) / 4)
    clipped, metrics = policy_loss(batch, PolicySettings(dual_clip=3.0))
    assert clipped.item() == pytest.approx((-1.2 + 3 + 2 + 0.8) / 4)
    assert metrics["clip_high"].tolist() == [[1, 1, 0, 0]]
    assert metrics["clip_low"].tolist() == [[0, 0, 0, 1]]
    clipped.backward()
    assert logps.grad is not None
    assert (logps.grad != 0).tolist() == [[False, False, True, False]]


def test_a_prompt_is_anchored_more_often_the_more_of_its_rollouts_succeed() -> None:
    assert [adaptive_q(0.0, share) for share in (0, 0.5, 1)] == [0, 0.5, 1]
    assert [adaptive_q(0.4, share) for share in (0, 0.5, 1)] == pytest.approx([0.4, 0.7, 1])


# -- in the trainer ----------------------------------------------------------------------------------------------------


def test_positive_advantages_alone_are_those_of_l_h(tmp_path: Path) -> None:
    """In rows under [x; h*], the loss is that of advantages cut at 0; rows under x keep theirs."""
    for q in (0, 1):
        losses = []
        for selection in ("all", "positive"):
            keys = (f"algo.q={q}", f"algo.conditioned.advantages={selection}")
            trainer = make_trainer(small(*KEYS, *keys), tmp_path / f"{q}{selection}", half_right)
            batch = rolled_batch(trainer)
            if selection == "all" and q == 0:
                batch["advantages"] = batch["advantages"].clamp(min=0)
            losses.append(gradient(trainer, trainer.compute_loss(trainer.model, batch)))
        assert losses[0].norm() > 0
        assert torch.allclose(losses[0], losses[1], atol=1e-7)


def test_the_floor_leaves_out_what_the_trace_makes_improbable(tmp_path: Path) -> None:
    """The loss is that of advantages which are 0 where they are negative and p(y|x,h) is small."""
    found = []
    for keys in (("algo.conditioned.floor=0.01",), (), ()):
        trainer = make_trainer(small(*KEYS, "algo.q=0", *keys), tmp_path / str(len(found)), half_right)
        batch = rolled_batch(trainer)
        if len(found) == 1:
            with torch.no_grad():
                excluded = log_probs(trainer, batch, "context").exp() < 0.01
            assert excluded.any()
            batch["advantages"] = batch["advantages"].masked_fill(excluded & (batch["advantages"] < 0), 0)
        found.append(gradient(trainer, trainer.compute_loss(trainer.model, batch)))
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_the_weight_is_the_ratio_of_both_contexts_under_the_policy_that_sampled(tmp_path: Path) -> None:
    trainer = make_trainer(small(*KEYS, "algo.q=0.5", "algo.conditioned.weight=ratio"), tmp_path, half_right)
    batch = rolled_batch(trainer, prompts=6)
    with torch.no_grad():
        shift = log_probs(trainer, batch, "context") - log_probs(trainer, batch, "prompt")
    on = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert batch["conditioned"].unique().tolist() == [False, True]
    assert torch.allclose(batch["conditioned_weight"][on], shift.clamp(max=0).exp()[on], atol=1e-4)
    assert (batch["conditioned_weight"][~batch["conditioned"]] == 1).all()
    assert (batch["conditioned_weight"][on] < 1).any()


def test_success_anchors_the_prompts_that_the_policy_solves(tmp_path: Path) -> None:
    """With expert_script one rollout of four solves its task; with half_right none does, for it makes no call."""
    for script, expected in ((expert_script, [0.25 + 0.75 / 4] * 8), (half_right, [0.25] * 8)):
        trainer = make_trainer(small("algo.q_from=success", "algo.q=0.25", *KEYS), tmp_path / script.__name__, script)
        batch = rolled_batch(trainer)
        assert trainer._anchoring == pytest.approx(expected)
        gates = [bool(anchor_gates(q, 0, 0, [key])) for q, key in zip(expected, trainer._batch_rows, strict=True)]
        assert batch["conditioned"].tolist() == [not gate for gate in gates]
        assert trainer._metrics["train"]["anneal/q"][-1] == pytest.approx(expected[0])
