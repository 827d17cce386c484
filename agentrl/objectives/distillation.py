"""Self-distillation: the policy under [x; h*] (teacher) scores the tokens that the policy under x (student) sampled.

d_t = log pi(y_t|x,h,y<t) - log pi(y_t|x,y<t). sg stops the gradient: the teacher, and every weight computed from d, is
constant in the loss.
Shapes: B rollouts, C completion tokens.

OPSD, SDFT   arXiv 2601.18734, 2601.19897: `reverse_kl`, alone or beside GRPO's loss
SDAR         arXiv 2605.15155: `gated_gap` beside GRPO's loss
RLSD         the code of SDAR: `credit_weights` on the advantages of GRPO
"""

from __future__ import annotations

import torch
from torch import Tensor


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return sg(-d) log pi(y|x) of each token. Its expected gradient over y is that of KL(student || teacher).

    student, teacher: (B, C) log-probs under x and under [x; h*]. Returns (B, C).
    """
    return (student - teacher).detach() * student


def gated_gap(student: Tensor, teacher: Tensor, sharpness: float) -> Tensor:
    """Return sg(sigmoid(sharpness d)) (log pi_T - log pi_S) of each token: it raises the tokens the teacher prefers.

    student, teacher: (B, C) log-probs under x and under [x; h*]. Returns (B, C).
    """
    gap = teacher.detach() - student
    return (sharpness * gap.detach()).sigmoid() * gap


def credit_weights(advantages: Tensor, d: Tensor, share: float, clip: float) -> Tensor:
    """Return (1 - l) + l clip(exp(sign(A) d), 1 - c, 1 + c) of each token: more weight where the teacher agrees with A.

    advantages, d: (B, C). share is l and clip is c. The weight is not negative for c <= 1, so it keeps the sign of A.
    """
    told = (advantages.sign() * d).exp().clamp(1 - clip, 1 + clip)
    return torch.as_tensor(1 - share + share * told)


def falling_share(start: float, step: int, steps: int) -> float:
    """Return l at an update: it falls linearly from `start` to 0 at update `steps`. It is always 0 if steps = 0."""
    return start * max(0.0, 1 - step / steps) if steps > 0 else 0.0
