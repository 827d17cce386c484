"""PACT (arXiv 2606.16215): prompt-only rollouts, and an objective that also reads an expert trace h*.

    L = mean over prompts of (1 - z) (L^h + beta_SFT L_SFT) + z L^x      (eq. 12-14)

eq. 4-5    L^x: `policy.policy_loss`, log-probs and old log-probs under the prompt x
eq. 7-8    L^h: the same function with both under [x; h*], and the same advantages
eq. 9      `sft_token_weights`
eq. 10     `sft_loss`
eq. 11     lambda_a(s): `schedules.anneal_value`
eq. 12     `mixed_loss`
eq. 13     z: `anchor_gates`. It chooses the context of a prompt's rows, and whether its trace is in L_SFT
eq. 14     `policy.average` over rows, of which each prompt has K; `supervised.prompt_mean` over traces
App. B     `advantages.hard_credit_advantage`

Shape suffixes: N prompts, S expert traces, L tokens of a trace.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agentrl.core.expert_trace import MAX_LEVEL
from agentrl.core.trajectory import Component
from agentrl.objectives.supervised import weighted_nll


def anchor_gates(q: float, seed: int, step: int, prompt_keys: Sequence[int]) -> Tensor:
    """z ~ Bernoulli(q) per prompt and step (eq. 13); True anchors the prompt to L^x.

    Returns bool (N,). The draw is a hash of (seed, step, key), not the state of a generator: resuming, the number of
    ranks and the order of the batch cannot change it. Raises ValueError unless 0 <= q <= 1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q {q} is not in [0, 1]")
    return torch.tensor([_uniform(seed, step, int(key)) < q for key in prompt_keys], dtype=torch.bool)


def sft_token_weights(
    component: Tensor,
    turn: Tensor,
    chunk: Tensor,
    *,
    reasoning: str,
    call: str,
    level: int,
    kept: float,
    call_scale: float,
    call_start: float,
) -> Tensor:
    """m_n(s) of eq. 9 and its ablations (Tables 4 and 6): the weight of every token of one trace in L_SFT.

    component, turn, chunk: (L,) long. `chunk` is the index of the safe reasoning chunk within its turn, and -1 on
    every other token, previews of the call included. Returns float32 (L,).

    reasoning: segment  1 on the chunks of prefix level `level` (L4: every safe chunk; L0: none)
               token    1 on the first ceil(kept * n) of each turn's n safe reasoning tokens
               fixed    1 on all safe reasoning; none: 0
    call:      scale    `call_scale` on complete call spans (lambda_a of eq. 11)
               token    1 on the first ceil(call_scale * n) of each turn's n call tokens
               fixed    `call_start` throughout; none: 0
    reasoning='full_token' cuts the trace as a whole: 1 on the first ceil(kept * n) of its n trainable tokens (safe
    reasoning and calls, in order), and `call` is ignored. The paper names this ablation without defining it.
    Prompt, observations, delimiters and answers are never targets.
    Raises ValueError on an unknown schedule, differing lengths, or level, kept or a call weight out of range.
    """
    if component.dim() != 1 or component.shape != turn.shape or component.shape != chunk.shape:
        raise ValueError("component, turn and chunk must be one-dimensional and equally long")
    if not 0 <= level <= MAX_LEVEL or not 0 <= kept <= 1 or not 0 <= call_scale <= 1 or not 0 <= call_start <= 1:
        raise ValueError(
            f"level {level} must be in 0..{MAX_LEVEL}; kept {kept}, call_scale {call_scale} and call_start "
            f"{call_start} in [0, 1]"
        )
    safe = (component == int(Component.REASONING)) & (chunk >= 0)
    calls = component == int(Component.TOOL_CALL)
    if reasoning == "full_token":
        return _first_share(safe | calls, kept).float()

    if reasoning == "segment":
        active = safe if level == MAX_LEVEL else safe & (chunk < level)
    elif reasoning == "token":
        active = _first_share_per_turn(safe, turn, kept)
    elif reasoning in ("fixed", "none"):
        active = safe if reasoning == "fixed" else torch.zeros_like(safe)
    else:
        raise ValueError(f"unknown schedule {reasoning!r} of reasoning")

    if call == "scale":
        call_weight = call_scale * calls.float()
    elif call == "token":
        call_weight = _first_share_per_turn(calls, turn, call_scale).float()
    elif call in ("fixed", "none"):
        call_weight = (call_start if call == "fixed" else 0.0) * calls.float()
    else:
        raise ValueError(f"unknown schedule {call!r} of tool calls")
    return active.float() + call_weight  # disjoint: a token has one component


def sft_loss(logps: Tensor, weights: Tensor, norm: str = "weights") -> tuple[Tensor, Tensor]:
    """L_SFT per trace (eq. 10): -(1/Z) sum_n m_n log pi(h*_n | x, h*_<n).

    norm: weights  Z = sum_n m_n (eq. 10). Where all targets weigh the same, that weight cancels
          tokens   Z = number of targets (m_n > 0), so that a falling weight makes the term smaller
    logps, weights: (S, L), as `supervised.weighted_nll` takes them. Returns (loss (S,), Z (S,)). A trace with Z = 0 is
    skipped. Raises ValueError on differing shapes or an unknown norm.
    """
    if norm not in ("weights", "tokens"):
        raise ValueError(f"unknown norm {norm!r}")
    weights = weights.to(logps.dtype)
    z = weights.sum(1) if norm == "weights" else (weights > 0).sum(1).to(weights)
    return weighted_nll(logps, weights, z), z


def mixed_loss(rl: Tensor, sft: Tensor, rl_coef: float, sft_coef: float) -> Tensor:
    """Eq. 12: L_RL + beta_SFT L_SFT, scalars that are means over all prompts already (eq. 14).

    rl_coef is 1 in the paper, and 0 in its SFT-only ablation; sft_coef is beta_SFT.
    """
    return rl_coef * rl + sft_coef * sft


def _uniform(seed: int, step: int, key: int) -> float:
    digest = hashlib.blake2b(f"pact-gate:{seed}:{step}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: in [0, 1), so q = 0 never and q = 1 always


def _first_share(selected: Tensor, share: float) -> Tensor:
    """The first ceil(share * n) of the n selected positions."""
    total = int(selected.sum())
    keep = math.ceil(share * total - 1e-9)  # the slack keeps 0.7 * 10 at 7
    return selected & (selected.cumsum(0) <= keep)


def _first_share_per_turn(selected: Tensor, turn: Tensor, share: float) -> Tensor:
    out = torch.zeros_like(selected)
    for index in set(turn[selected].tolist()):
        out |= _first_share(selected & (turn == index), share)
    return out
