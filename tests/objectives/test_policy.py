"""The policy-gradient loss by hand, by finite differences, by invariance, and against TRL's own."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TopPLogitsWarper
from trl import GRPOTrainer

from agentrl.objectives.policy import (
    PolicyBatch,
    PolicySettings,
    average,
    divergence_loss,
    importance_ratio,
    k3,
    policy_loss,
    truncated_weights,
)
from agentrl.objectives.sampling import kept_log_mass, sampler_mismatch
from agentrl.scoring.sequence import Scores
from agentrl.trainers.loss import LossTrainer
from tests.support.helpers import trl_loss

LEVELS, AGGREGATIONS = ("token", "sequence_mean", "sequence"), ("sequence", "token")
# Two rows: pi = .6, .2 against pi_old = .5, .4 and pi_ref = .3, .2, and one token of .8 against 1.0 and .4.
LOGPS = torch.tensor([[0.6, 0.2], [0.8, 0.1]], dtype=torch.float64).log()
OLD = torch.tensor([[0.5, 0.4], [1.0, 0.7]], dtype=torch.float64).log()
REFERENCE = torch.tensor([[0.3, 0.2], [0.4, 0.9]], dtype=torch.float64).log()
MASK = torch.tensor([[1, 1], [1, 0]])
ADVANTAGES = torch.tensor([[1.0, -2.0], [3.0, 5.0]], dtype=torch.float64)
ENTROPIES = torch.tensor([[0.5, 1.0], [0.3, 9.0]], dtype=torch.float64)
BY_HAND = PolicyBatch(LOGPS, ADVANTAGES, MASK, ENTROPIES, OLD, REFERENCE)
HALF = 0.5 - math.log(0.5) - 1  # k3 where pi_ref is half of pi


def random_batch(seed: int = 0, rows: int = 6, width: int = 9, **changes: Any) -> PolicyBatch:
    """Ratios from 0.4 to 2.6, advantages of both signs, rows of 0 to `width` trained tokens with gaps."""
    rng = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(rows, width, generator=rng, dtype=torch.float64)

    logps = -normal(1.0).abs() - 0.5
    mask = (torch.rand(rows, width, generator=rng) < 0.7).long() * (torch.arange(width) < width - 2)
    mask[0], mask[1] = 0, 1
    values = {"old": logps + normal(0.3), "reference": logps + normal(0.5), "sampler_weights": normal(0.2).exp()}
    batch = PolicyBatch(logps, normal(1.0), mask, normal(1.0).abs(), **values)
    return replace(batch, **changes)


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "tokens", "expected"),
    [
        # r = 1.2, .5 and .8, eps = .1: min(1.2, 1.1) = 1.1; min(-1, -1.8) = -1.8; min(2.4, 2.7) = 2.4
        ("sequence", None, -((1.1 - 1.8) / 2 + 2.4) / 2),
        ("token", 3, -(1.1 - 1.8 + 2.4) / 3),
        ("token", 6, -(1.1 - 1.8 + 2.4) / 6),  # an average micro-batch has twice the tokens of this one
    ],
)
def test_the_surrogate_by_hand(aggregation: str, tokens: int | None, expected: float) -> None:
    loss, metrics = policy_loss(BY_HAND, PolicySettings(clip_eps=0.1, aggregation=aggregation), tokens)
    assert loss.item() == pytest.approx(expected, abs=1e-12) == metrics["policy_loss"].item()
    assert metrics["clip_high"].tolist() == [[1, 0], [0, 0]]  # 1.2 > 1.1 at A > 0
    assert metrics["clip_low"][0].tolist() == [0, 1]  # .5 < .9 at A < 0
    assert "kl" not in metrics


def test_clipped_tokens_have_no_gradient_and_others_that_of_the_ratio() -> None:
    logps = LOGPS.clone().requires_grad_()
    policy_loss(replace(BY_HAND, logps=logps), PolicySettings(clip_eps=0.1))[0].backward()
    assert logps.grad is not None
    # d/dlogp of -r A is -r A = -2.4; half of it in the mean over two rows
    assert logps.grad.tolist() == [[0, 0], [pytest.approx(-1.2), 0]]


def test_kl_and_entropy_by_hand() -> None:
    plain, _ = policy_loss(BY_HAND, PolicySettings())
    with_kl, metrics = policy_loss(BY_HAND, PolicySettings(kl_coef=0.3))
    assert metrics["kl"].tolist() == [[pytest.approx(HALF), 0], [pytest.approx(HALF), 0]]
    assert (with_kl - plain).item() == pytest.approx(0.3 * (HALF / 2 + HALF) / 2)
    corrected, metrics = policy_loss(BY_HAND, PolicySettings(kl_coef=0.3, kl_ratio_correction=True))
    assert metrics["kl"].tolist() == [[pytest.approx(1.2 * HALF), 0], [pytest.approx(0.8 * HALF), 0]]
    assert (corrected - plain).item() == pytest.approx(0.3 * (1.2 * HALF / 2 + 0.8 * HALF) / 2)
    with_entropy, metrics = policy_loss(BY_HAND, PolicySettings(entropy_coef=0.1))
    assert (with_entropy - plain).item() == pytest.approx(-0.1 * (0.5 + 1.0 + 0.3) / 3)  # over tokens, not rows
    assert metrics["policy_loss"] == plain


def test_the_ratio_at_each_level_by_hand() -> None:
    log_ratio = (LOGPS - OLD) * MASK
    assert importance_ratio(log_ratio, MASK, "token").tolist() == [pytest.approx([1.2, 0.5]), pytest.approx([0.8, 1])]
    assert importance_ratio(log_ratio, MASK, "sequence_mean").flatten().tolist() == pytest.approx([0.6**0.5, 0.8])
    assert importance_ratio(log_ratio, MASK, "sequence").flatten().tolist() == pytest.approx([0.6, 0.8])
    none = torch.zeros_like(MASK)
    assert importance_ratio(torch.zeros(2, 2), none, "sequence_mean").tolist() == [[1], [1]]


@pytest.mark.parametrize(("level", "first"), [("sequence", 0.6), ("sequence_mean", 0.6**0.5)])
def test_a_row_s_ratio_in_the_loss_by_hand(level: str, first: float) -> None:
    batch = replace(BY_HAND, advantages=torch.tensor([[2.0], [-3.0]], dtype=torch.float64))
    # A = 2 at r below 1: no clip. A = -3 at .8: the clip holds it at .9
    expected = -(2 * first - 3 * 0.9) / 2
    assert policy_loss(batch, PolicySettings(clip_eps=0.1, level=level))[0].item() == pytest.approx(expected)


def test_without_an_old_policy_all_ratios_are_1_and_the_gradient_is_reinforce_s() -> None:
    logps = LOGPS.clone().requires_grad_()
    loss, metrics = policy_loss(replace(BY_HAND, logps=logps, old=None), PolicySettings())
    loss.backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [pytest.approx([-1 / 4, 2 / 4]), pytest.approx([-3 / 2, 0])]
    assert metrics["clip_low"].sum() + metrics["clip_high"].sum() == 0


def test_the_weights_of_another_sampler_by_hand() -> None:
    sampled = torch.tensor([[0.25, 0.1], [math.nan, math.nan]], dtype=torch.float64).log()
    weights = truncated_weights(OLD.clone().requires_grad_(), sampled, MASK, cap=3.0)
    assert weights.tolist() == [pytest.approx([2.0, 3.0]), [1, 1]]  # .5 / .25, .4 / .1 capped, unknown, outside
    assert not weights.requires_grad
    loss, _ = policy_loss(replace(BY_HAND, sampler_weights=weights), PolicySettings(clip_eps=0.1, kl_coef=1.0))
    expected = -((2 * 1.1 - 3 * 1.8) / 2 + 2.4) / 2 + (HALF / 2 + HALF) / 2  # the KL term is not weighed
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("level", LEVELS)
def test_weight_times_ratio_is_the_ratio_to_what_sampled(level: Any) -> None:
    """Whoever sampled: the policies of the trainer and of the sampler may be updates apart."""
    batch = random_batch(11)
    assert batch.old is not None
    sampled = batch.old + 0.1 * torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(12))
    weights = truncated_weights(batch.old, sampled, batch.mask, math.inf, level)
    ratio, whole = (
        importance_ratio((batch.logps - one).masked_fill(batch.mask == 0, 0), batch.mask, level)
        for one in (batch.old, sampled)
    )
    torch.testing.assert_close(weights * ratio, whole.expand(weights.shape))
    capped = truncated_weights(batch.old, sampled, batch.mask, 1.0, level)
    assert torch.equal(capped, weights.clamp(max=1)) and weights.max() > 1.01
    if level == "sequence":  # one value a row, by hand
        first = ((batch.old - sampled)[0] * batch.mask[0]).sum().exp()
        torch.testing.assert_close(weights[0], first.expand(weights[0].shape))


def test_k3_is_never_below_0_and_0_where_the_policies_agree() -> None:
    batch = random_batch()
    assert k3(batch.logps, batch.reference).min() > 0
    assert k3(batch.logps, batch.logps).abs().max() == 0


# --- finite differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_gradients_agree_with_finite_differences(level: str, aggregation: str, correction: bool) -> None:
    batch = random_batch(1)
    settings = PolicySettings(0.2, level, aggregation, 0.3, correction, 0.05)

    def loss(logps: Tensor, entropies: Tensor) -> Tensor:
        return policy_loss(replace(batch, logps=logps, entropies=entropies), settings, tokens=20)[0]

    inputs = (batch.logps.clone().requires_grad_(), batch.entropies.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradcheck(
        lambda logps: divergence_loss(replace(batch, logps=logps), settings, tokens=20)[0], inputs[:1]
    )


# --- invariances ------------------------------------------------------------------------------------------------------

FULL = [
    PolicySettings(0.2, level, aggregation, 0.3, correction, 0.05)
    for level, aggregation, correction in product(LEVELS, AGGREGATIONS, (False, True))
]


def loss_and_slope(batch: PolicyBatch, settings: PolicySettings, tokens: float = 20) -> tuple[Tensor, Tensor]:
    logps = batch.logps.clone().requires_grad_()
    loss, _ = policy_loss(replace(batch, logps=logps), settings, tokens)
    (slope,) = torch.autograd.grad(loss, logps)
    return loss.detach(), slope


def of_rows(batch: PolicyBatch, rows: Any) -> PolicyBatch:
    return replace(batch, **{name: value[rows] for name, value in vars(batch).items() if value is not None})


@pytest.mark.parametrize("settings", FULL)
def test_rows_may_come_in_any_order(settings: PolicySettings) -> None:
    batch, order = random_batch(2), torch.tensor([3, 0, 5, 1, 4, 2])
    loss, slope = loss_and_slope(batch, settings)
    other, moved = loss_and_slope(of_rows(batch, order), settings)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(moved, slope[order])


@pytest.mark.parametrize("settings", FULL)
@pytest.mark.parametrize("filler", [0.0, -7.0, math.nan, -math.inf])
def test_padding_changes_nothing_and_is_never_read(settings: PolicySettings, filler: float) -> None:
    batch = random_batch(3)
    loss, slope = loss_and_slope(batch, settings)
    fill = dict.fromkeys(("logps", "old", "reference", "entropies", "sampler_weights", "advantages"), filler)
    padded = {
        name: torch.cat([value, torch.full((6, 3), fill.get(name, 0), dtype=value.dtype)], 1)
        for name, value in vars(batch).items()
    }
    other, longer = loss_and_slope(PolicyBatch(**padded), settings)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(longer[:, :9], slope)
    assert longer[:, 9:].abs().max() == 0


@pytest.mark.parametrize("settings", [replace(one, entropy_coef=0.0) for one in FULL])
def test_micro_batches_of_an_update_average_to_the_whole(settings: PolicySettings) -> None:
    """With the tokens of an average micro-batch as denominator, though each has another number of its own."""
    batch, tokens = random_batch(4), float(random_batch(4).mask.sum())
    loss, slope = loss_and_slope(batch, settings, tokens)
    parts = [loss_and_slope(of_rows(batch, slice(start, start + 2)), settings, tokens / 3) for start in (0, 2, 4)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).mean(), loss)
    torch.testing.assert_close(torch.cat([part for _, part in parts]) / 3, slope)


@pytest.mark.parametrize("level", LEVELS)
def test_zero_advantages_leave_the_kl_term_alone(level: str) -> None:
    settings = PolicySettings(level=level, kl_coef=0.3, kl_ratio_correction=True)
    batch = random_batch(5)
    silent = replace(batch, advantages=torch.zeros_like(batch.advantages))
    assert loss_and_slope(silent, replace(settings, kl_coef=0.0))[1].abs().max() == 0
    torch.testing.assert_close(policy_loss(silent, settings)[0], divergence_loss(batch, settings)[0])
    together = policy_loss(batch, replace(settings, kl_coef=0.0))[0] + divergence_loss(batch, settings)[0]
    torch.testing.assert_close(policy_loss(batch, settings)[0], together)


def test_without_a_clip_the_loss_is_linear_in_the_advantages() -> None:
    batch = replace(random_batch(6), sampler_weights=None)
    settings = PolicySettings(clip_eps=math.inf)
    twice = policy_loss(replace(batch, advantages=-2 * batch.advantages), settings)[0]
    torch.testing.assert_close(twice, -2 * policy_loss(batch, settings)[0])


def test_what_does_not_fit_is_refused() -> None:
    for changes, settings, message in (
        ({"mask": MASK[:, :1]}, PolicySettings(), "mask has shape"),
        ({"old": OLD[:1]}, PolicySettings(), "old has shape"),
        ({"advantages": ADVANTAGES[:, 0]}, PolicySettings(), "advantages have shape"),
        ({"reference": None}, PolicySettings(kl_coef=1.0), "needs the reference"),
        ({}, PolicySettings(level="turn"), "unknown level 'turn'"),
        ({}, PolicySettings(aggregation="rows"), "unknown aggregation 'rows'"),
        ({}, PolicySettings(aggregation="token"), "needs `tokens`"),
    ):
        with pytest.raises(ValueError, match=message):
            policy_loss(replace(BY_HAND, **changes), settings)
    assert average(torch.ones(2, 1), MASK, "sequence").item() == 1


# --- against TRL's loss -----------------------------------------------------------------------------------------------


def scores_of(logps: Tensor, entropies: Tensor, mask: Tensor) -> Scores:
    """What an engine says of rows of which the tokens of `mask` are scored; nothing of a row without any."""
    rows = [row for row in range(len(mask)) if mask[row].any()]
    return Scores(*([values[row][mask[row].bool()] for row in rows] for values in (logps, entropies)))


def bare_trainer(batch: PolicyBatch, settings: PolicySettings, steps: int) -> tuple[Any, dict[str, Any]]:
    """A trainer whose network's answer is `batch`, and the micro-batch it would read. It has no model."""
    trainer: Any = LossTrainer.__new__(LossTrainer)
    trainer.policy_settings = lambda: settings
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (batch.logps, batch.entropies, None)
    trainer.scorer = SimpleNamespace(
        cut=lambda groups, _: [range(len(groups))],
        score=lambda *_, **__: scores_of(batch.logps, batch.entropies, batch.mask),
    )
    trainer.config = SimpleNamespace(trainer=SimpleNamespace(tokens_per_batch=1))
    trainer.model, trainer._metrics = SimpleNamespace(training=True), {"train": _Lists()}
    trainer.accelerator = SimpleNamespace(
        num_processes=2,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        autocast=nullcontext,
        device="cpu",
        distributed_type=None,
        state=SimpleNamespace(deepspeed_plugin=None),
        gradient_state=SimpleNamespace(sync_gradients=True, _set_sync_gradients=lambda _: None),
    )
    trainer.args = SimpleNamespace(steps_per_generation=2 * steps, delta=None)
    trainer.current_gradient_accumulation_steps = steps
    trainer.aux_loss_enabled = trainer.use_adaptive_entropy = False
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = batch.sampler_weights is not None
    ids = torch.zeros_like(batch.mask)
    inputs = {
        **dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids"), ids),
        "completion_mask": torch.ones_like(batch.mask),
        "tool_mask": batch.mask,
        "advantages": batch.advantages,
        "num_items_in_batch": torch.tensor(96),
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "importance_sampling_ratio": batch.sampler_weights,
    }
    return trainer, inputs


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", ["token", "sequence_mean"])  # TRL has no product of a row's ratios
@pytest.mark.parametrize(("beta", "correction"), [(0.0, False), (0.3, False), (0.3, True)])
def test_loss_gradients_and_metrics_are_trl_s(level: str, aggregation: str, beta: float, correction: bool) -> None:
    for seed, (entropy, steps, old, weighed) in enumerate(product((0.0, 0.05), (1, 3), (True, False), (True, False))):
        lacking = {name: None for name, there in (("old", old), ("sampler_weights", weighed)) if not there}
        batch = random_batch(seed, **lacking)
        inputs = batch.logps.requires_grad_(), batch.entropies.requires_grad_()
        settings = PolicySettings(0.2, level, aggregation, beta, correction, entropy)
        trainer, micro_batch = bare_trainer(batch, settings, steps)
        found = []
        for loss_of in (lambda t, i: t.compute_loss(None, i), trl_loss):
            trainer._metrics["train"] = metrics = _Lists()
            loss = loss_of(trainer, micro_batch)
            slopes = torch.autograd.grad(loss, inputs, allow_unused=True)
            found.append((loss, slopes, {name: values[0] for name, values in metrics.items()}))
        (ours, our_slopes, our_metrics), (theirs, their_slopes, their_metrics) = found
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        for mine, other in zip(our_slopes, their_slopes, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-15)
        assert our_slopes[0].abs().max() > 1e-3
        if aggregation == "token" and entropy:  # TRL divides this one by the micro-batches of the update, too
            their_metrics["policy_loss"] *= steps
        assert our_metrics == pytest.approx(their_metrics, rel=1e-6, abs=1e-9)


def test_the_router_loss_of_a_mixture_of_experts_is_added_as_trl_does() -> None:
    trainer, inputs = bare_trainer(random_batch(9), PolicySettings(), 3)
    without = trainer.compute_loss(None, inputs)
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, entropies, torch.tensor(1.5))
    plain = trainer.scorer.score
    trainer.scorer.score = lambda *args, **named: replace(plain(*args, **named), router=torch.tensor(1.5))
    trainer.aux_loss_enabled, trainer.router_aux_loss_coef = True, 0.1
    trainer.accelerator.gather_for_metrics = trainer.accelerator.gather
    ours, theirs = trainer.compute_loss(None, inputs), trl_loss(trainer, inputs)
    torch.testing.assert_close(ours, theirs)
    assert (ours - without).item() == pytest.approx(0.1 * 1.5 / 3) and trainer._metrics["train"]["aux_loss"] == [
        1.5
    ] * 2


def rolled_batch(
    monkeypatch: pytest.MonkeyPatch, mode: str, changes: dict[str, Any] | None = None, top_p: float = 1.0
) -> tuple[Any, Any, Any, Any]:
    """A trainer after TRL's rollout batch, that batch, and the old and sampled log-probs in it."""
    batch = random_batch(7)
    trainer, inputs = bare_trainer(batch, PolicySettings(), 1)
    sampled = batch.old + 2 * torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(8))
    sampled[1, 2] = math.nan
    rolled = {**inputs, "sampling_per_token_logps": sampled, **(changes or {})}
    rolled = {name: value for name, value in rolled.items() if value is not None}
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: rolled)
    trainer.vllm_importance_sampling_clip_max = 3.0
    trainer.args.per_device_train_batch_size = 1
    trainer.config = SimpleNamespace(
        vllm=SimpleNamespace(mode=mode), rollout=SimpleNamespace(top_p=top_p, temperature=1.0)
    )
    return trainer, trainer._generate_and_score_completions([]), batch, sampled


def test_the_weights_of_a_rollout_batch_are_trl_s_token_truncate(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rolled, batch, sampled = rolled_batch(monkeypatch, "colocate", {"importance_sampling_ratio": None})
    theirs = torch.exp(torch.nan_to_num((batch.old - sampled) * batch.mask, nan=0.0)).clamp(max=3.0)  # TRL's lines
    ours = rolled["importance_sampling_ratio"]
    torch.testing.assert_close(ours, theirs)
    assert ours.max() == 3.0 and ours.min() < 0.5


def test_old_log_probs_are_scored_where_a_server_sampled_and_trl_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rolled, batch, sampled = rolled_batch(monkeypatch, "server", {"old_per_token_logps": None})
    assert rolled["old_per_token_logps"] is batch.logps
    mask = batch.mask
    torch.testing.assert_close(rolled["importance_sampling_ratio"], truncated_weights(batch.logps, sampled, mask, 3.0))


def test_the_mismatch_is_logged_before_it_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("server", "off"):  # and also where nothing is weighed
        trainer, rolled, batch, sampled = rolled_batch(monkeypatch, mode, {"importance_sampling_ratio": None})
        kept = (batch.mask == 1) & ~sampled.isnan()
        ratio = (batch.old - sampled)[kept].exp()
        logged = {name: values for name, values in trainer._metrics["train"].items() if name.startswith("sampler/")}
        assert logged["sampler/ratio_max"] == [pytest.approx(ratio.max().item())] and ratio.max() > 3
        assert logged["sampler/ratio_mean"] == [pytest.approx(ratio.mean().item())]
        assert logged["sampler/kl"] == [pytest.approx((ratio - ratio.log() - 1).mean().item())]
        assert ("importance_sampling_ratio" in rolled) == (mode == "server")


def test_the_mismatch_by_hand() -> None:
    sampled = torch.tensor([[0.25, 0.4], [math.nan, 0.1]], dtype=torch.float64).log()
    found = sampler_mismatch(OLD, sampled, MASK)  # ratios .5 / .25 and 1; the third is unknown, the fourth outside
    assert found["ratio_mean"].item() == pytest.approx(1.5) and found["ratio_max"].item() == pytest.approx(2.0)
    assert found["kl"].item() == pytest.approx((2 - math.log(2) - 1) / 2)
    assert all(value.isnan() for value in sampler_mismatch(OLD, sampled, torch.zeros_like(MASK)).values())


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, 1.0), (0.9, 0.9375), (0.8, 0.875), (0.74, 0.75), (0.51, 0.75), (0.49, 0.5), (0.01, 0.5)],
)
def test_the_mass_that_top_p_keeps_by_hand(top_p: float, kept: float) -> None:
    """Of 1/2, 1/4, 1/8, 1/16 and 1/16: the fewest whose sum reaches top_p; the warper of transformers agrees."""
    logits = torch.tensor([[0.125, 0.0625, 0.5, 0.25, 0.0625]], dtype=torch.float64).log() + 3.0
    assert kept_log_mass(logits, top_p).exp().item() == pytest.approx(kept)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, logits)
        mass = logits.softmax(-1)[theirs.isfinite()].sum()
        assert mass.item() == pytest.approx(kept)


class _Lists(dict[str, list[float]]):
    def __missing__(self, name: str) -> list[float]:
        self[name] = []
        return self[name]
