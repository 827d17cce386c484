"""The KL term and HIPO's ratios by hand, far from the policy that sampled, gradients included."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agentrl.objectives.policy import PolicySettings
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import composed, gradient, log_probs, make_trainer, rolled_batch, small, trl_loss
from tests.support.methods import IMITATING, PACKAGED
from tests.trainers.test_hipo_trainer import SMALL, reply

KL = 0.3
TWO_UPDATES = ("trainer.minibatch_prompts=1",)  # so that TRL keeps old log-probs
METHODS = {
    "grpo": ("algo=grpo",),
    "pact": ("algo=pact", "algo.q=0", "algo.sft_coef=0"),
    "pact_prompt": ("algo=pact", "algo.q=0", "algo.sft_coef=0", "algo.kl_context=prompt"),
    "chord": ("algo=chord", "algo.mu.peak=0.25", "algo.mu.valley=0.25"),
    **{name: (f"algo={name}",) for name in IMITATING if name != "chord"},
    "hipo": ("algo=hipo", "algo.importance_level=token"),
}


def move(trainer: Any, distance: float) -> None:
    """Put the policy away from the one that sampled, which is the reference too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=distance)


def moved(trainer: Any) -> Any:
    batch = rolled_batch(trainer)
    move(trainer, 0.02)
    return batch


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values.masked_fill(mask == 0, 0)).sum(1) / mask.sum(1)


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "grpo" else pytest.mark.slow) for m in METHODS])
def test_the_kl_term_by_hand(tmp_path: Path, method: str) -> None:
    """beta mean_rows mean_tokens (exp(d) - d - 1), d = log pi_ref - log pi, and not times the ratio unless asked."""
    keys = (f"algo.kl_coef={KL}", "algo.entropy_coef=0")
    if method == "hipo":
        config, script = composed(*METHODS[method], *SMALL[:-1], *TWO_UPDATES, *keys), reply
    else:
        config, script = small(*METHODS[method], *TWO_UPDATES, *keys), expert_script
    trainer = make_trainer(config, tmp_path, script)
    batch, context = rolled_batch(trainer), "context" if method == "pact" else "prompt"
    mask = batch["completion_mask"] * batch["tool_mask"]
    sampled = log_probs(trainer, batch, context).detach()
    move(trainer, 0.02 if method == "hipo" else 0.005)
    share = 0.75 if method == "chord" else 1.0  # 1 - mu
    config.algo.kl_coef = 0.0
    without = trainer.compute_loss(trainer.model, batch)
    value, slope, config.algo.kl_coef = without.item(), gradient(trainer, without), KL
    for corrected in (False, True):
        config.algo.kl_ratio_correction = corrected
        now = log_probs(trainer, batch, context)
        delta, ratio = batch["ref_per_token_logps"] - now, torch.exp(now - sampled)
        assert ratio[mask.bool()].min() < 0.7 and ratio[mask.bool()].max() > 1.3
        kl = (torch.exp(delta) - delta - 1) * (ratio if corrected else 1)
        by_hand = share * KL * row_means(kl, mask).mean()
        loss = trainer.compute_loss(trainer.model, batch)
        assert by_hand > 1e-3 and loss.item() - value == pytest.approx(by_hand.item(), rel=1e-3, abs=2e-5)
        found = gradient(trainer, loss) - slope
        assert torch.allclose(found, gradient(trainer, by_hand), rtol=1e-3, atol=2e-5)


def test_the_plain_estimator_is_the_default() -> None:
    for algo in (name for name, keys in PACKAGED.items() if "kl_ratio_correction" in keys.model_fields):
        assert composed(f"algo={algo}").algo.kl_ratio_correction is False


def count_from_first_token(model: Any, args: Any, inputs: dict[str, Any]) -> Any:
    """TRL counts positions from the padding on, which moves log-probs in float32; ours count from the first token."""
    return args, inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_loss_and_gradients_of_a_network_are_trl_s(tmp_path: Path, aggregation: str) -> None:
    """Away from the policy that sampled, to 1e-5: packed rows round otherwise in float32.

    The tests of policy.py have every setting, without a network, to 1e-6.
    """
    config = small("algo=grpo", *TWO_UPDATES, f"algo.kl_coef={KL}", "algo.clip_eps=0.2")
    trainer = make_trainer(config, tmp_path, expert_script)
    batch = rolled_batch(trainer)
    move(trainer, 0.005)
    for level, rest in product(("token", "sequence_mean"), ((0.0, False, 0.0), (KL, False, 0.01), (KL, True, 0.0))):
        settings = PolicySettings(0.2, level, aggregation, *rest)  # beta, corrected, entropy
        trainer.policy_settings = lambda settings=settings: settings
        ours = trainer.compute_loss(trainer.model, batch)
        slope, clipped = gradient(trainer, ours), trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        hook = trainer.model.register_forward_pre_hook(count_from_first_token, with_kwargs=True)
        theirs = trl_loss(trainer, batch)
        hook.remove()
        expected = gradient(trainer, theirs)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)  # large terms cancel
        assert (slope - expected).norm() <= 1e-5 * expected.norm() and expected.norm() > 1e-3
        assert clipped > 0.01 or level != "token"


def hipo(level: str, out: Path, *overrides: str) -> Any:
    keys = ("algo=hipo", *SMALL, *TWO_UPDATES, f"algo.importance_level={level}", "algo.clip_eps=0.9", *overrides)
    return make_trainer(composed(*keys), out, reply)


@pytest.mark.parametrize("level", ["sequence", "sequence_mean", "token"])
def test_the_ratio_of_a_reply_by_hand(tmp_path: Path, level: str) -> None:
    trainer = hipo(level, tmp_path)
    batch = moved(trainer)
    mask, advantage = batch["completion_mask"] * batch["tool_mask"], batch["advantages"][:, :1]
    log_ratio = log_probs(trainer, batch) - batch["old_per_token_logps"]
    if level == "token":
        ratio = torch.exp(log_ratio)
    else:
        total = (log_ratio * mask).sum(1, keepdim=True)
        ratio = torch.exp(total if level == "sequence" else total / mask.sum(1, keepdim=True))
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.1, 1.9) * advantage).expand_as(mask)
    by_hand = -row_means(surrogate, mask).mean()
    loss = trainer.compute_loss(trainer.model, batch)
    assert (ratio - 1).abs().max() > 0.15
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4, abs=2e-5)
    assert torch.allclose(gradient(trainer, loss), gradient(trainer, by_hand), rtol=1e-3, atol=1e-4)


def test_the_kl_term_keeps_its_own_log_probs_beside_a_reply_s_ratio(tmp_path: Path) -> None:
    trainer = hipo("sequence", tmp_path, f"algo.kl_coef={KL}")
    batch = moved(trainer)
    delta = batch["ref_per_token_logps"] - log_probs(trainer, batch)
    by_hand = KL * row_means(torch.exp(delta) - delta - 1, batch["completion_mask"] * batch["tool_mask"]).mean()
    with_kl = trainer.compute_loss(trainer.model, batch)
    trainer.config.algo.kl_coef = 0.0
    assert (with_kl - trainer.compute_loss(trainer.model, batch)).item() == pytest.approx(by_hand.item(), abs=2e-5)


def test_where_old_log_probs_are_the_policy_s_own_a_reply_weighs_by_its_length(tmp_path: Path) -> None:
    """One update a rollout batch, as HIPO writes it: ratio 1, gradient A sum_n grad log pi in place of their mean."""
    trainer = hipo("sequence", tmp_path, "trainer.minibatch_prompts=2")
    batch = rolled_batch(trainer)
    assert batch.get("old_per_token_logps") is None
    mask = batch["completion_mask"] * batch["tool_mask"]
    by_hand = -(batch["advantages"][:, 0] * (log_probs(trainer, batch) * mask).sum(1)).mean()
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(-batch["advantages"][:, 0].mean().item(), abs=1e-5)
    assert torch.allclose(gradient(trainer, loss), gradient(trainer, by_hand), atol=1e-4)
