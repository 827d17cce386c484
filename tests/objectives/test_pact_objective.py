"""PACT's own terms: gates, token weights and the SFT loss, by hand, by finite differences and by invariance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentrl.core.trajectory import Component
from agentrl.objectives.pact import anchor_gates, mixed_loss, sft_loss, sft_token_weights
from agentrl.objectives.policy import PolicyBatch, PolicySettings, policy_loss
from agentrl.objectives.supervised import prompt_mean

# One trace of two turns. Letters: R safe reasoning (digit: its chunk), P a preview of the call, C call, O observation,
# D delimiter. Turn 0: R0 R0 R1 R2 P C C C D O, turn 1: R0 R1 C C D.
TRACE = "R0 R0 R1 R2 P C C C D O | R0 R1 C C D A"
KINDS = {
    "R": Component.REASONING,
    "P": Component.REASONING,
    "C": Component.TOOL_CALL,
    "O": Component.OBSERVATION,
    "D": Component.DELIMITER,
    "A": Component.ANSWER,
    "X": Component.PROMPT,
}


def weights(trace: str = TRACE, **changes: Any) -> list[float]:
    """Weights of a trace in the notation above, turns separated by |; full strength unless changed."""
    tokens = [(word, turn) for turn, part in enumerate(trace.split("|")) for word in part.split()]
    options: dict[str, Any] = {"reasoning": "segment", "call": "scale", "level": 4, "kept": 1.0}
    options |= {"call_scale": 1.0, "call_start": 0.8} | changes
    return sft_token_weights(
        torch.tensor([KINDS[word[0]] for word, _ in tokens]),
        torch.tensor([turn for _, turn in tokens]),
        torch.tensor([int(word[1]) if word[0] == "R" else -1 for word, _ in tokens]),
        **options,
    ).tolist()


@pytest.mark.parametrize(
    ("options", "turn0", "turn1"),
    [
        # level 4 is every safe chunk, lambda_a = 0.5 on calls; preview, delimiter, observation and answer never
        ({"call_scale": 0.5}, [1, 1, 1, 1, 0, 0.5, 0.5, 0.5, 0, 0], [1, 1, 0.5, 0.5, 0, 0]),
        ({"level": 2, "call": "none"}, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]),
        ({"level": 1, "call": "none"}, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
        ({"level": 0, "call": "fixed", "call_scale": 0.1}, [0] * 5 + [0.8] * 3 + [0, 0], [0, 0, 0.8, 0.8, 0, 0]),
        # token: ceil(0.3 * 4) = 2 of turn 0, ceil(0.3 * 2) = 1 of turn 1; calls ceil(0.5 * 3) = 2 and 1
        (
            {"reasoning": "token", "kept": 0.3, "call": "token", "call_scale": 0.5},
            [1, 1, 0, 0, 0, 1, 1, 0, 0, 0],
            [1, 0, 1, 0, 0, 0],
        ),
        ({"reasoning": "fixed", "call": "none", "level": 0, "kept": 0}, [1] * 4 + [0] * 6, [1, 1, 0, 0, 0, 0]),
        ({"reasoning": "none", "call": "scale"}, [0] * 5 + [1] * 3 + [0, 0], [0, 0, 1, 1, 0, 0]),
        # full_token: 7 trainable in turn 0, 4 in turn 1; ceil(0.7 * 11) = 8, and `call` is ignored
        ({"reasoning": "full_token", "kept": 0.7, "call": "none"}, [1, 1, 1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]),
        ({"reasoning": "full_token", "kept": 0.0, "call": "scale"}, [0] * 10, [0] * 6),
    ],
)
def test_token_weights_by_hand(options: dict[str, Any], turn0: list[float], turn1: list[float]) -> None:
    assert weights(**options) == pytest.approx([*turn0, *turn1])


@pytest.mark.parametrize("reasoning", ["segment", "token", "full_token", "fixed"])
@pytest.mark.parametrize("call", ["scale", "token"])
def test_full_strength_is_masked_sft(reasoning: str, call: str) -> None:
    """With full levels and lambda_a = 1 every schedule trains on all safe reasoning and all calls alike."""
    assert weights(reasoning=reasoning, call=call) == [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]


@given(st.floats(0, 1), st.integers(1, 60))
def test_token_schedules_keep_the_ceiling_of_the_share(kept: float, n: int) -> None:
    trace = " ".join(["R0"] * n)
    count = sum(weights(trace, reasoning="token", kept=kept))
    assert kept * n - 1e-6 <= count < kept * n + 1
    assert sum(weights(trace, reasoning="full_token", kept=kept)) == count


def test_rounding_does_not_keep_a_token_too_many() -> None:
    assert 0.07 * 100 > 7  # in binary
    assert sum(weights(" ".join(["R0"] * 100), reasoning="token", kept=0.07)) == 7


@given(st.integers(0, 3))
def test_prefix_levels_are_cumulative(level: int) -> None:
    lower, higher = weights(level=level, call="none"), weights(level=level + 1, call="none")
    assert all(a <= b for a, b in zip(lower, higher, strict=True))


def test_prompt_tokens_are_never_targets_and_an_empty_trace_is_fine() -> None:
    assert weights("X X O") == [0, 0, 0]
    assert weights("") == []


@pytest.mark.parametrize(
    "bad",
    [{"reasoning": "half"}, {"call": "segment"}, {"level": 5}, {"kept": 1.1}, {"call_scale": -0.1}, {"call_start": 2}],
)
def test_bad_schedules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(bad)):
        weights(**bad)


def test_sft_loss_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -1.0, -1.0]])
    m = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    loss, z = sft_loss(logps, m)
    # (1 * 1 + 0.5 * 4) / 1.5 = 2; the second trace has Z = 0
    assert loss.tolist() == [2.0, 0.0]
    assert z.tolist() == [1.5, 0.0]


def test_sft_loss_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    logps = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    m = torch.rand(3, 5, dtype=torch.float64)
    m[2] = 0
    assert torch.autograd.gradcheck(lambda x: sft_loss(x, m)[0], (logps,))


def test_no_weight_means_no_gradient_and_no_nan() -> None:
    logps = torch.tensor([[-1.0, -math.inf, math.nan], [-math.inf, -math.inf, -1.0]], requires_grad=True)
    m = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss, _ = sft_loss(logps, m)
    loss.sum().backward()
    assert loss.tolist() == [1.0, 0.0]
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-1, 0, 0], [0, 0, 0]]


def test_unit_weights_are_cross_entropy_and_padding_changes_nothing() -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(4, 7, 11), torch.randint(11, (4, 7))
    logps = logits.log_softmax(-1).gather(2, target[..., None])[..., 0]
    loss, _ = sft_loss(logps, torch.ones(4, 7))
    torch.testing.assert_close(loss.mean(), torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))
    pad = torch.full((4, 3), -9.0)
    padded, _ = sft_loss(torch.cat([logps, pad], 1), torch.cat([torch.ones(4, 7), torch.zeros(4, 3)], 1))
    torch.testing.assert_close(padded, loss)


def test_scaling_all_weights_changes_nothing() -> None:
    """Z normalises: lambda_a matters only against the reasoning tokens."""
    torch.manual_seed(2)
    logps, m = torch.randn(2, 6), torch.rand(2, 6)
    torch.testing.assert_close(sft_loss(logps, m)[0], sft_loss(logps, 0.2 * m)[0])


def test_the_objective_is_eq_12_to_14_prompt_by_prompt() -> None:
    """(1 - z) (L^h + beta L_SFT) + z L^x written out for 4 prompts of 3 rollouts, prompts 1 and 2 anchored."""
    rng = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    prompts, k, width, anchored = 4, 3, 5, [False, True, True, False]
    under_x, under_h, old_x, old_h = (-drawn(prompts, k, width).abs() for _ in range(4))
    advantages, mask = drawn(prompts, k, width), torch.rand(prompts, k, width, generator=rng) < 0.7
    trace, m = -drawn(prompts, 6).abs(), torch.rand(prompts, 6, generator=rng, dtype=torch.float64)

    def surrogate(i: int, now: Tensor, old: Tensor) -> Tensor:  # eq. 5 and 8
        r, a = torch.exp(now - old)[i], advantages[i]
        values = torch.minimum(r * a, r.clamp(0.8, 1.2) * a) * mask[i]
        return -(values.sum(1) / mask[i].sum(1).clamp(min=1)).mean()

    def one_prompt(i: int) -> Tensor:
        if anchored[i]:
            return surrogate(i, under_x, old_x)
        sft = -(m[i] * trace[i]).sum() / m[i].sum()  # eq. 10
        return surrogate(i, under_h, old_h) + 0.1 * sft

    expected = torch.stack([one_prompt(i) for i in range(prompts)]).mean()
    z = torch.tensor(anchored)[:, None, None]  # chooses the context of the rows
    rows = [torch.where(z, x, h).flatten(0, 1) for x, h in ((under_x, under_h), (old_x, old_h))]
    batch = PolicyBatch(rows[0], advantages.flatten(0, 1), mask.flatten(0, 1), -rows[0], old=rows[1])
    rl, _ = policy_loss(batch, PolicySettings(clip_eps=0.2))
    beside = [i for i in range(prompts) if not anchored[i]]
    sft = prompt_mean(sft_loss(trace[beside], m[beside])[0], k, prompts * k)
    torch.testing.assert_close(mixed_loss(rl, sft, 1.0, 0.1), expected, rtol=1e-12, atol=0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="must both be"):
        sft_loss(torch.zeros(2, 3), torch.zeros(2, 2))
    one, two = torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="equally long"):
        sft_token_weights(one, two, one, reasoning="none", call="none", level=0, kept=0, call_scale=0, call_start=0)


def test_gates_at_the_ends_and_in_between() -> None:
    keys = list(range(4000))
    assert not anchor_gates(0.0, 3, 0, keys).any()
    assert anchor_gates(1.0, 3, 0, keys).all()
    # sd of the share is sqrt(0.24 / 4000) = 0.0077: four of them
    assert abs(anchor_gates(0.4, 3, 0, keys).float().mean().item() - 0.4) < 0.031
    assert anchor_gates(0.4, 3, 0, []).shape == (0,)
    with pytest.raises(ValueError, match=r"q 1\.2"):
        anchor_gates(1.2, 3, 0, keys)


def test_gates_depend_on_seed_step_and_key_alone() -> None:
    keys = list(range(500))
    gates = anchor_gates(0.4, 3, 7, keys)
    assert torch.equal(gates, torch.cat([anchor_gates(0.4, 3, 7, keys[:123]), anchor_gates(0.4, 3, 7, keys[123:])]))
    assert torch.equal(gates.flip(0), anchor_gates(0.4, 3, 7, keys[::-1]))
    for other in (anchor_gates(0.4, 3, 8, keys), anchor_gates(0.4, 4, 7, keys)):
        # independent draws agree with probability 0.4^2 + 0.6^2 = 0.52
        assert abs((gates == other).float().mean().item() - 0.52) < 0.1
    assert (gates <= anchor_gates(0.6, 3, 7, keys)).all()  # a larger q only adds anchors


def test_gates_are_the_same_on_every_machine() -> None:
    assert anchor_gates(0.4, 0, 0, list(range(12))).int().tolist() == [1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0]
