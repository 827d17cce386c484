"""Advantages compare the rollouts of one prompt, as whole trajectories and turn by turn (PACT, App. B).

Hard credit is the sum of both comparisons: a turn is credited for its own reward and for that of its trajectory
(`hard_credit_advantage`). GRPO compares whole trajectories only (`trajectory_advantage`).

Shape suffixes: N prompts, K rollouts of a prompt, T turns, B = N * K rows, C completion tokens.
`mask` is 1 on the turns that a rollout took, which are a prefix of the T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentrl.objectives.chance import uniform

# Values closer than this count as equal: they differ by the rounding of a float32 sum. The distance is relative above 1
# and absolute below. Otherwise a group of equal values would get advantages of about 0.1, made of rounding alone.
_TIE = 1e-6


def trajectory_advantage(returns: Tensor, eps: float, *, divide_by_std: bool = True, lone_raw: bool = False) -> Tensor:
    """Compute A^g = (R - mean) / (std + eps) over the rollouts of a prompt, with the unbiased std.

    returns: (N, K). Returns (N, K) of the same dtype. A group of equal returns gives exactly 0. A NaN return is
    missing: it gets 0, and no mean includes it. A lone rollout (K = 1) gets 0, or its return over 1 + eps with
    `lone_raw`. `divide_by_std=False` only subtracts the mean. Raises ValueError on another shape.
    """
    if returns.dim() != 2:
        raise ValueError(f"returns has shape {tuple(returns.shape)}, not (N, K)")
    mask = ~torch.isnan(returns)
    return _normalise(returns, mask, eps, divide_by_std=divide_by_std, lone_raw=lone_raw)


def turn_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Compute R^l_{k,t} = sum_{u >= t} gamma^(u-t) r_u over the turns taken. It is 0 after the last turn.

    rewards, mask: (N, K, T). Returns (N, K, T). Raises ValueError on other shapes, on gamma outside [0, 1] and on a
    mask with holes.
    """
    taken = _check_turns(rewards, mask)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma {gamma} is not in [0, 1]")
    masked = rewards.masked_fill(~taken, 0)
    out = torch.zeros_like(masked)
    tail = torch.zeros_like(masked[..., 0])
    for t in reversed(range(masked.shape[-1])):
        tail = masked[..., t] + gamma * tail
        out[..., t] = tail
    return out.masked_fill(~taken, 0)


def turn_advantage(returns: Tensor, mask: Tensor, eps: float, *, lone_raw: bool = False) -> Tensor:
    """Compute A^l: normalise turn returns across the rollouts of a prompt that reached the same turn index.

    returns, mask: (N, K, T). Returns (N, K, T), 0 outside the mask and where all returns are equal. A NaN return is
    missing: it gets 0, and no mean includes it.
    A turn that only one rollout reached gets 0. MatchTIR's code gives it its raw return instead (`lone_raw`). With
    non-negative rewards, this reinforces the rollout with the most turns, whatever it did there.
    Raises ValueError on other shapes and on a mask with holes.
    """
    taken = _check_turns(returns, mask) & ~torch.isnan(returns)
    return _normalise(returns, taken, eps, divide_by_std=True, lone_raw=lone_raw)


def hard_credit_advantage(
    turn_rewards: Tensor,
    mask: Tensor,
    gamma: float,
    eps: float,
    scale: float,
    *,
    divide_by_std: bool = True,
    lone_raw: bool = False,
) -> Tensor:
    """Compute hard credit, scale * (A^g + A^l), for each turn (PACT, App. B).

    A^g compares the undiscounted sums R_k of the turn rewards of each rollout; A^l compares the discounted returns of
    the turns. turn_rewards, mask: (N, K, T). Returns (N, K, T), 0 outside the mask. The papers write scale = 1;
    MatchTIR's code uses scale = 0.5 and `lone_raw`. `divide_by_std` applies to A^g alone.
    """
    taken = _check_turns(turn_rewards, mask)
    total = turn_rewards.double().masked_fill(~taken, 0).sum(-1)  # in float64 the order of the sum does not break ties
    group = trajectory_advantage(total, eps, divide_by_std=divide_by_std, lone_raw=lone_raw)
    turn = turn_advantage(turn_returns(turn_rewards.double(), taken, gamma), taken, eps, lone_raw=lone_raw)
    fused = scale * (group[..., None] + turn)
    return fused.masked_fill(~taken, 0).to(turn_rewards.dtype)


def group_advantages(
    turn_rewards: Tensor, mask: Tensor, *, kind: str, gamma: float, scale: float, eps: float, lone_raw: bool
) -> Tensor:
    """Compute the advantages of GRPO and PACT, as `kind` says.

    'hard_credit' is `hard_credit_advantage`. 'trajectory' gives every turn the z-score of R_k in its group.
    turn_rewards, mask: (N, K, T). Returns (N, K, T). The keywords are the keys of `algo.advantage`.
    """
    if kind == "hard_credit":
        return hard_credit_advantage(turn_rewards, mask, gamma, eps, scale, lone_raw=lone_raw)
    return trajectory_advantage(turn_rewards.sum(-1), eps)[..., None].expand_as(turn_rewards)


def random_signs(seed: int, step: int, prompt_keys: Sequence[int]) -> Tensor:
    """Draw +1 or -1 for each rollout at a step, by `chance.uniform`: a control whose advantages carry no information.

    prompt_keys: the prompt of each of the B rollouts; the rollouts of a prompt are consecutive. Returns float64 (B,).
    """
    seen: dict[int, int] = {}
    draws = []
    for key in prompt_keys:
        seen[key] = seen.get(key, -1) + 1
        draws.append(1.0 if uniform(f"sign:{seed}:{step}:{key}:{seen[key]}") < 0.5 else -1.0)
    return torch.tensor(draws, dtype=torch.float64)


def spread_to_tokens(turn_values: Tensor, turn: Tensor, policy_mask: Tensor) -> Tensor:
    """Give every token of the policy the value of its turn, and 0 to all other tokens.

    turn_values: (B, T); policy_mask: (B, C); turn: (B, C) long, read only where policy_mask is 1. Returns (B, C).
    Raises ValueError if the turn of a policy token is not in 0..T-1.
    """
    own = policy_mask.bool()
    if bool(((turn < 0) | (turn >= turn_values.shape[1]))[own].any()):
        raise ValueError(f"a policy token's turn is outside 0..{turn_values.shape[1] - 1}")
    if turn_values.shape[1] == 0:
        return turn_values.new_zeros(turn.shape)
    return turn_values.gather(1, turn.masked_fill(~own, 0)).masked_fill(~own, 0)


def _normalise(values: Tensor, mask: Tensor, eps: float, *, divide_by_std: bool, lone_raw: bool) -> Tensor:
    """Compute z-scores along dimension 1 over the masked values, in float64.

    They are 0 for ties, for lone values and outside the mask.
    """
    x = values.double().masked_fill(~mask, 0)
    count = mask.sum(1, keepdim=True)
    mean = x.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (x - mean).masked_fill(~mask, 0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    high = x.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    low = x.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    tied = high - low <= _TIE * x.abs().amax(1, keepdim=True).clamp(min=1)
    out = (centred / (std + eps) if divide_by_std else centred).masked_fill(tied, 0)
    if lone_raw:  # MatchTIR: mean 0 and std 1 for a single member
        out = torch.where((count == 1) & mask, x / (1 + eps) if divide_by_std else x, out)
    return out.to(values.dtype)


def _check_turns(values: Tensor, mask: Tensor) -> Tensor:
    if values.dim() != 3 or values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must both be (N, K, T)")
    taken = mask.bool()
    if bool((taken[..., 1:] & ~taken[..., :-1]).any()):
        raise ValueError("the turn mask has a hole: it must be a prefix of the turns")
    return taken
