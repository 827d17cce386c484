"""Measures the gradients of the loss terms of a method with expert traces. It does not change the training.

All terms are measured on the rollouts and the traces of one mini-batch, whichever of them the method trains on. L^x and
L^h are the policy-gradient losses of all rollouts under x and under [x; h*], at the present policy, without KL and
entropy terms. L_SFT is the method's own term on all traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agentrl.objectives.diagnosis import compare_gradients, describe_context, describe_shift
from agentrl.objectives.policy import PolicyBatch, policy_loss
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.trainers.loss import Inputs, LossTrainer, piece_of, rollouts_after, spread, trained_tokens

# Names of the measures. `objectives/diagnosis.py` defines them.
MEASURES = (
    *("norm_x", "norm_h", "norm_sft", "cos_x_h", "cos_x_sft", "cos_h_sft"),
    *("pull_good_x", "pull_bad_x", "improbable_x", "pull_good_h", "pull_bad_h", "improbable_h"),
    *("shift_good", "shift_bad"),
)
TraceTerm = Callable[[Inputs, Scores], Tensor]


def diagnose(
    trainer: LossTrainer,
    model: Any,
    inputs: Inputs,
    under_h: dict[int, Sequence],
    traces: dict[int, Sequence],
    trace_term: TraceTerm,
) -> dict[str, float]:
    """Compute the measures of `objectives/diagnosis.py` for a mini-batch. Return them by name.

    under_h: by row, the rollouts of prompts that have a trace, after [x; h*]. traces: by row, the sequences that
    `trace_term`, the loss on the traces, needs. Rows without a trace are left out of all measures. A measure that
    cannot be computed is NaN.
    """
    if not under_h:
        return dict.fromkeys(MEASURES, math.nan)
    mask = trained_tokens(inputs)
    mask = mask * torch.tensor([[row in under_h] for row in range(len(mask))], device=mask.device)
    inputs = {**inputs, "tool_mask": mask}
    settings = replace(trainer.policy_settings(), kl_coef=0.0, entropy_coef=0.0)

    def policy_term(piece: Inputs, scores: Scores) -> Tensor:
        own = trained_tokens(piece)
        logps = spread(scores.logps, own)
        batch = PolicyBatch(logps, piece["advantages"], own, torch.zeros_like(logps))
        return policy_loss(batch, settings, tokens=mask.sum().clamp(min=1), rows=len(mask))[0]

    x, plain = _measure(trainer, model, inputs, rollouts_after(inputs, "prompt"), policy_term)
    h, shown = _measure(trainer, model, inputs, under_h, policy_term)
    sft, _ = _measure(trainer, model, inputs, traces, trace_term)
    found = compare_gradients({"x": x, "h": h, "sft": sft})
    under = {"x": spread(plain, mask), "h": spread(shown, mask)}
    for context, logps in under.items():
        described = describe_context(logps, inputs["advantages"], mask)
        found |= {f"{name}_{context}": value for name, value in described.items()}
    return found | describe_shift(under["h"], under["x"], inputs["advantages"], mask)


def _measure(
    trainer: LossTrainer,
    model: Any,
    inputs: Inputs,
    sequences: dict[int, Sequence],
    term: TraceTerm,
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Return the gradient of a term with respect to the trainable parameters, and the log-probs of its sequences."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    total: list[Tensor | None] = [None] * len(parameters)
    logps: list[Tensor] = []
    rows = len(inputs["completion_ids"])
    groups = [[sequences[row]] if row in sequences else [] for row in range(rows)]
    for piece in trainer.scorer.cut(groups, trainer.config.trainer.tokens_per_batch):
        here = [sequences[row] for row in piece if row in sequences]
        if not here:
            continue
        with trainer.accelerator.autocast():
            scores = trainer.scorer.score(model, here)
        logps += [values.detach() for values in scores.logps]
        parts = torch.autograd.grad(term(piece_of(inputs, piece, rows), scores), parameters, allow_unused=True)
        total = [_sum(one, other) for one, other in zip(total, parts, strict=True)]
    return total, logps


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other.detach()
    return one + other.detach()
