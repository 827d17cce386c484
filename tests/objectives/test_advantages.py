"""Hard-credit advantages: hand-worked groups, invariances, and agreement with MatchTIR's code on canned rewards."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentrl.objectives.advantages import (
    hard_credit_advantage,
    random_signs,
    spread_to_tokens,
    trajectory_advantage,
    turn_advantage,
    turn_returns,
)

EPS = 1e-6
SHARED = Path(os.environ.get("AGENTRL_SHARED") or Path(__file__).parents[3] / "shared")


def ragged(rollouts: list[list[float]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """One group (1, K, T) of turn rewards and its mask; `pad` adds empty turns."""
    length = max(len(r) for r in rollouts) + pad
    rewards, mask = torch.zeros(1, len(rollouts), length, dtype=torch.float64), torch.zeros(1, len(rollouts), length)
    for k, values in enumerate(rollouts):
        rewards[0, k, : len(values)] = torch.tensor(values)
        mask[0, k, : len(values)] = 1
    return rewards, mask


def test_trajectory_advantage_by_hand() -> None:
    # mean 2, deviations -1, 0, 1, unbiased variance (1 + 0 + 1) / 2 = 1
    out = trajectory_advantage(torch.tensor([[1.0, 2.0, 3.0]]), eps=0.0)
    assert out.tolist() == [[-1.0, 0.0, 1.0]]
    # std 1 and eps 1: halved
    assert trajectory_advantage(torch.tensor([[1.0, 2.0, 3.0]]), eps=1.0).tolist() == [[-0.5, 0.0, 0.5]]
    centred = trajectory_advantage(torch.tensor([[0.0, 4.0]]), eps=0.0, divide_by_std=False)
    assert centred.tolist() == [[-2.0, 2.0]]


def test_turn_returns_by_hand() -> None:
    rewards, mask = ragged([[1.0, 0.0, 2.0], [0.5]])
    # 2; 0 + 0.5 * 2 = 1; 1 + 0.5 * 1 = 1.5
    assert turn_returns(rewards, mask, 0.5).tolist() == [[[1.5, 1.0, 2.0], [0.5, 0.0, 0.0]]]
    rewards[0, 1, 2] = 99.0  # a reward outside the mask is nobody's
    assert turn_returns(rewards, mask, 0.5)[0, 1].tolist() == [0.5, 0.0, 0.0]


def test_turn_advantage_by_hand() -> None:
    returns, mask = ragged([[1.0, 4.0], [3.0, 8.0], [5.0]])
    out = turn_advantage(returns, mask, eps=0.0)[0]
    # turn 0: mean 3, std 2; turn 1: two members, mean 6, std sqrt((4 + 4) / 1) = 2 sqrt 2
    assert out[:, 0].tolist() == pytest.approx([-1, 0, 1])
    assert out[:, 1].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5), 0])


def test_hard_credit_by_hand() -> None:
    rewards, mask = ragged([[1.0, 1.0], [0.0]])
    # R = 2, 0: mean 1, std sqrt 2, A^g = +-1/sqrt 2. Turn returns at gamma 1: 2, 1 | 0: A^l of turn 0 = +-1/sqrt 2;
    # turn 1 is reached by one rollout alone: A^l = 0.
    out = hard_credit_advantage(rewards, mask, gamma=1.0, eps=0.0, scale=1.0)[0]
    root = math.sqrt(0.5)
    assert out.flatten().tolist() == pytest.approx([2 * root, root, -2 * root, 0])
    halved = hard_credit_advantage(rewards, mask, gamma=1.0, eps=0.0, scale=0.5)[0]
    torch.testing.assert_close(halved, out / 2)


def test_a_lone_turn_is_compared_with_nothing() -> None:
    returns, mask = ragged([[1.0, 0.7], [2.0]])
    assert turn_advantage(returns, mask, EPS)[0, 0, 1] == 0
    assert turn_advantage(returns, mask, EPS, lone_raw=True)[0, 0, 1].item() == pytest.approx(0.7, abs=1e-5)
    assert trajectory_advantage(torch.tensor([[3.0]]), EPS).item() == 0
    assert trajectory_advantage(torch.tensor([[3.0]]), EPS, lone_raw=True).item() == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_rewards_give_exactly_zero(dtype: torch.dtype) -> None:
    # 0.1 + 0.2 + 0.3 depends on the order of summation in floating point; the advantage must not.
    orders = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.1, 0.3], [0.3, 0.1, 0.2]]
    rewards = torch.tensor([orders], dtype=dtype)
    sums = rewards.sum(-1)
    assert trajectory_advantage(sums, EPS).abs().max() == 0
    # Rewards that cancel leave 3e-8 of noise in float32, large beside its own size.
    cancelled = torch.tensor([0.1, 0.2, -0.3], dtype=dtype)
    assert (
        trajectory_advantage(torch.stack([cancelled.sum(), torch.zeros((), dtype=dtype)])[None], EPS).abs().max() == 0
    )
    same = torch.full((2, 4, 3), 0.43684962760934565, dtype=dtype)
    assert hard_credit_advantage(same, torch.ones_like(same), 0.9, EPS, 1.0).abs().max() == 0


def test_small_but_real_differences_count() -> None:
    assert trajectory_advantage(torch.tensor([[0.5, 0.5001]]), EPS).abs().min() > 0.6  # +- 1/sqrt 2 without eps


groups = st.lists(st.lists(st.floats(-1, 2, width=16), min_size=1, max_size=4), min_size=2, max_size=5)


@given(groups, st.randoms())
def test_permuting_the_group_permutes_the_advantages(rollouts: list[list[float]], random: Random) -> None:
    order = random.sample(range(len(rollouts)), len(rollouts))
    straight = hard_credit_advantage(*ragged(rollouts), 0.9, EPS, 1.0)[:, order]
    length = max(len(r) for r in rollouts)
    permuted = hard_credit_advantage(*ragged([rollouts[k] for k in order]), 0.9, EPS, 1.0)
    torch.testing.assert_close(permuted[..., :length], straight, atol=1e-9, rtol=1e-9)


@given(groups)
def test_padding_turns_and_other_prompts_change_nothing(rollouts: list[list[float]]) -> None:
    rewards, mask = ragged(rollouts)
    padded, padded_mask = ragged(rollouts, pad=3)
    padded[padded_mask == 0] = 7.0
    alone = hard_credit_advantage(rewards, mask, 0.9, EPS, 1.0)
    out = hard_credit_advantage(padded, padded_mask, 0.9, EPS, 1.0)
    torch.testing.assert_close(out[..., : rewards.shape[-1]], alone)
    assert out[..., rewards.shape[-1] :].abs().max() == 0
    stacked = hard_credit_advantage(torch.cat([rewards, rewards + 5]), torch.cat([mask, mask]), 0.9, EPS, 1.0)
    torch.testing.assert_close(stacked[:1], alone)


@given(groups)
def test_advantages_centre_on_zero_and_one_turn_doubles(rollouts: list[list[float]]) -> None:
    returns = torch.tensor([[sum(r) for r in rollouts]], dtype=torch.float64)
    advantage = trajectory_advantage(returns, EPS)
    assert abs(advantage.sum().item()) < 1e-6
    # With a single turn per rollout both levels see the same numbers.
    fused = hard_credit_advantage(returns[..., None], torch.ones_like(returns[..., None]), 0.9, EPS, 1.0)
    torch.testing.assert_close(fused[..., 0], 2 * advantage)


def test_spread_to_tokens() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    turn = torch.tensor([[0, 0, 0, 1, -1], [1, 0, 1, 9, 9]])
    own = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]])
    assert spread_to_tokens(values, turn, own).tolist() == [[1, 1, 0, 2, 0], [4, 3, 4, 0, 0]]
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        spread_to_tokens(values, turn, torch.ones_like(turn))


def test_bad_arguments_are_refused() -> None:
    good = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="hole"):
        turn_returns(good, torch.tensor([[[1, 0, 1], [1, 1, 1]]]), 0.9)
    with pytest.raises(ValueError, match="gamma"):
        turn_returns(good, torch.ones_like(good), 1.1)
    with pytest.raises(ValueError, match="must both be"):
        turn_advantage(good, torch.ones(1, 2, 2), EPS)
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        trajectory_advantage(good, EPS)


def test_parity_with_matchtir() -> None:
    path = SHARED / "parity" / "matchtir_advantage.jsonl"
    if not path.exists():
        pytest.skip(f"no parity data at {path}; set AGENTRL_SHARED")
    compared = 0
    for case in map(json.loads, path.read_text().splitlines()):
        official = case["official"]
        if "error" in official:  # a rollout without turns crashes there
            continue
        for uid in dict.fromkeys(case["uid"]):
            rows = [i for i, other in enumerate(case["uid"]) if other == uid]
            rewards, mask = ragged([case["turn_rewards"][i] for i in rows])
            divide, eps, gamma = case["norm_group_by_std"], case["epsilon"], case["gamma"]
            a_g = trajectory_advantage(rewards.sum(-1), eps, divide_by_std=divide, lone_raw=True)[0]
            returns = turn_returns(rewards, mask, gamma)
            a_l = turn_advantage(returns, mask, eps, lone_raw=True)[0]
            fused = hard_credit_advantage(rewards, mask, gamma, eps, 0.5, divide_by_std=divide, lone_raw=True)[0]
            group_tied = f"{uid}:group" in case["degenerate"]
            for k, i in enumerate(rows):
                assert a_g[k].item() == pytest.approx(0 if group_tied else official["A_g"][i], abs=5e-6), case["case"]
                for t in range(len(case["turn_rewards"][i])):
                    assert returns[0, k, t].item() == pytest.approx(official["discounted"][i][t], abs=5e-6)
                    # Where all members are equal the true value is 0, and MatchTIR's float32 noise is not compared.
                    tied = f"{uid}:{t}" in case["degenerate"]
                    assert a_l[k, t].item() == pytest.approx(0 if tied else official["A_l"][i][t], abs=5e-6)
                    if not tied and not group_tied:
                        assert fused[k, t].item() == pytest.approx(official["fused_per_turn"][i][t], abs=5e-6)
                    compared += 1
    assert compared > 1000


# -- random signs ------------------------------------------------------------------------------------------------------


def test_random_signs_are_fair_coins_that_depend_on_seed_step_prompt_and_place_alone() -> None:
    keys = [prompt for prompt in range(1000) for _ in range(4)]
    signs = random_signs(0, 3, keys)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 3 / len(keys) ** 0.5
    within = signs.view(-1, 4)
    assert abs((within[:, 0] * within[:, 1]).mean().item()) < 0.1  # rollouts of a prompt have coins of their own
    assert torch.equal(signs, random_signs(0, 3, keys))
    assert torch.equal(signs[400:], random_signs(0, 3, keys[400:]))  # also where another process has the first prompts
    for other in (random_signs(1, 3, keys), random_signs(0, 4, keys)):
        assert not torch.equal(signs, other)


def test_a_rollout_without_a_reward_is_left_out_of_hard_credit() -> None:
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [math.nan, math.nan], [1.0, 1.0]]])
    mask = torch.ones(1, 4, 2, dtype=torch.bool)
    found = hard_credit_advantage(rewards, mask, 0.9, 1e-4, 1.0)
    rest = [0, 1, 3]
    expected = hard_credit_advantage(rewards[:, rest], mask[:, rest], 0.9, 1e-4, 1.0)
    assert torch.equal(found[:, rest], expected) and not found[:, 2].any()
