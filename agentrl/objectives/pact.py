"""PACT (arXiv 2606.16215): rollouts see the prompt x alone, and the objective also reads an expert trace h*.

The expert trace h* is an expert's solution of the task. A prompt that is anchored trains with the loss L^x under the
prompt alone. A prompt that is not anchored trains with the loss L^h under [x; h*], and with the SFT term on h*. The
gate z of a prompt says which: z = 1 anchors it.

    L = mean over prompts of (1 - z) (L^h + beta_SFT L_SFT) + z L^x      (eq. 12-14)

eq. 4-5    L^x: `policy.policy_loss`, log-probs and old log-probs under the prompt x
eq. 7-8    L^h: the same function with both under [x; h*], and the same advantages
eq. 9      `sft_token_weights`
eq. 10     `sft_loss`
eq. 11     lambda_a(s): `schedules.anneal_value`
eq. 12     `mixed_loss`
eq. 13     z: `anchor_gates`
eq. 14     `policy.average` over the rows, K for each prompt; `supervised.prompt_mean` over the traces
App. B     `advantages.hard_credit_advantage`

Shape suffixes: N prompts, S expert traces, L tokens of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from agentrl.core.expert_trace import MAX_LEVEL
from agentrl.core.trajectory import Component
from agentrl.objectives.chance import uniform
from agentrl.objectives.choices import CallSchedule, ReasoningSchedule, Selection, SftNorm
from agentrl.objectives.supervised import weighted_nll


def anchor_gates(q: float, seed: int, step: int, prompt_keys: Sequence[int]) -> Tensor:
    """Draw the gate z ~ Bernoulli(q) of each prompt at a step (eq. 13). True anchors the prompt.

    Returns bool (N,). A gate is drawn by `chance.uniform`: q = 0 never anchors, q = 1 always does. Raises ValueError
    unless 0 <= q <= 1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q {q} is not in [0, 1]")
    return torch.tensor([uniform(f"pact-gate:{seed}:{step}:{int(key)}") < q for key in prompt_keys], dtype=torch.bool)


def sft_token_weights(
    component: Tensor,
    turn: Tensor,
    chunk: Tensor,
    *,
    reasoning: ReasoningSchedule,
    call: CallSchedule,
    level: int,
    kept: float,
    call_scale: float,
    call_start: float,
) -> Tensor:
    """Compute m_n(s), the weight of every token of one trace in L_SFT (eq. 9, and its ablations in Tables 4 and 6).

    component, turn, chunk: (L,) long. Returns float32 (L,). Safe reasoning is the reasoning of a turn before any
    literal preview of the call. `chunk` is the index of a safe chunk within its turn, and -1 on every other token.

    reasoning: segment  1 on the chunks of prefix level `level` (L4: every safe chunk; L0: none)
               token    1 on the first ceil(kept * n) of each turn's n safe reasoning tokens
               fixed    1 on all safe reasoning; none: 0
    call:      scale    `call_scale` on complete call spans (lambda_a of eq. 11)
               token    1 on the first ceil(call_scale * n) of each turn's n call tokens
               fixed    `call_start` throughout; none: 0
    reasoning='full_token' cuts the whole trace: 1 on the first ceil(kept * n) of its n trainable tokens (safe reasoning
    and calls, in order). It ignores `call`. The paper names this ablation and does not define it.
    Tokens of the prompt, of observations, delimiters and answers are never targets.
    Raises ValueError on an unknown schedule, on differing lengths, and if level, kept or a call weight is out of range.
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
    return active.float() + call_weight  # the two never overlap: a token has one component


def sft_loss(logps: Tensor, weights: Tensor, norm: SftNorm = "weights") -> tuple[Tensor, Tensor]:
    """Compute L_SFT of each trace (eq. 10): -(1/Z) sum_n m_n log pi(h*_n | x, h*_<n).

    norm: weights  Z = sum_n m_n (eq. 10). If all targets have the same weight, the weight cancels
          tokens   Z = number of targets (m_n > 0), so a falling weight makes the term smaller
    logps, weights: (S, L), as `supervised.weighted_nll` takes them. Returns (loss (S,), Z (S,)). The loss of a trace
    with Z = 0 is 0. Raises ValueError on differing shapes and on an unknown norm.
    """
    if norm not in get_args(SftNorm):
        raise ValueError(f"unknown norm {norm!r}")
    weights = weights.to(logps.dtype)
    z = weights.sum(1) if norm == "weights" else (weights > 0).sum(1).to(weights)
    return weighted_nll(logps, weights, z), z


def conditioned_weights(
    under_h: Tensor,
    advantages: Tensor,
    selection: Selection = "all",
    floor: float = 0.0,
    under_x: Tensor | None = None,
) -> Tensor:
    """Return the weight of each token (B, C) in L^h, without a gradient. These variants are not in the paper.

    selection  'all' keeps every token; 'positive' gives tokens with A <= 0 the weight 0
    floor      tokens with A < 0 and p(y|x,h) < floor get the weight 0, since the trace excludes them anyway
    under_x    (B, C) log p(y|x) or None; if it is given, the weight is multiplied by min(1, p(y|x,h) / p(y|x))
    under_h: (B, C) log p(y|x,h); advantages: (B, C). Raises ValueError on an unknown selection.
    """
    if selection not in get_args(Selection):
        raise ValueError(f"unknown selection {selection!r}")
    under_h = under_h.detach()
    weights = torch.ones_like(under_h)
    if under_x is not None:
        weights = (under_h - under_x.detach()).clamp(max=0).exp()
    excluded = under_h < (math.log(floor) if floor > 0 else -math.inf)
    weights = weights.masked_fill((advantages < 0) & excluded, 0)
    return weights if selection == "all" else weights.masked_fill(advantages <= 0, 0)


def adaptive_q(q: float, progress: float) -> float:
    """Return q + (1 - q) s, the probability to anchor a prompt whose progress is s: q at 0, and always at 1."""
    return q + (1 - q) * progress


def mixed_loss(rl: Tensor, sft: Tensor, rl_coef: float, sft_coef: float) -> Tensor:
    """Return rl_coef * L_RL + sft_coef * L_SFT (eq. 12), from scalars that are means over all prompts (eq. 14).

    rl_coef is 1 in the paper, and 0 in its SFT-only ablation. sft_coef is beta_SFT.
    """
    return rl_coef * rl + sft_coef * sft


def _first_share(selected: Tensor, share: float) -> Tensor:
    """Select the first ceil(share * n) of the n selected positions."""
    total = int(selected.sum())
    keep = math.ceil(share * total - 1e-9)  # without the slack, rounding could turn 0.7 * 10 into 8
    return selected & (selected.cumsum(0) <= keep)


def _first_share_per_turn(selected: Tensor, turn: Tensor, share: float) -> Tensor:
    out = torch.zeros_like(selected)
    for index in set(turn[selected].tolist()):
        out |= _first_share(selected & (turn == index), share)
    return out
