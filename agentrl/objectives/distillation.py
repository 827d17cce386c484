"""Self-distillation: the policy under [x; h*] (teacher) judges the tokens that the policy under x (student) sampled.

d_t = log pi(y_t|x,h,y<t) - log pi(y_t|x,y<t). The teacher, and every weight made of d, is constant in the loss.
Shapes: B rollouts, C completion tokens.

OPSD, SDFT   arXiv 2601.18734, 2601.19897: `reverse_kl`, alone or beside GRPO's loss
SDAR         arXiv 2605.15155: `gated_gap` beside GRPO's loss
RLSD         the code of SDAR: `credit_weights` on the advantages of GRPO
"""

from __future__ import annotations

import torch
from torch import Tensor


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """sg(-d) log pi(y|x) of each token: its gradient, on average over y, is that of KL(student || teacher)."""
    return (student - teacher).detach() * student


def gated_gap(student: Tensor, teacher: Tensor, sharpness: float) -> Tensor:
    """sg(sigmoid(sharpness d)) (log pi_T - log pi_S) of each token: raises those that the teacher prefers."""
    gap = teacher.detach() - student
    return (sharpness * gap.detach()).sigmoid() * gap


def credit_weights(advantages: Tensor, d: Tensor, share: float, clip: float) -> Tensor:
    """(1 - l) + l clip(exp(sign(A) d), 1 - c, 1 + c) of each token: the teacher tells which tokens earned A.

    share is l, clip is c. Never negative for c <= 1, so the sign of an advantage stays.
    """
    told = (advantages.sign() * d).exp().clamp(1 - clip, 1 + clip)
    return torch.as_tensor(1 - share + share * told)


def falling_share(start: float, step: int, steps: int) -> float:
    """l at an update: from `start` in a line to 0 after `steps` updates, 0 with steps = 0."""
    return start * max(0.0, 1 - step / steps) if steps > 0 else 0.0
