"""DPO (arXiv 2305.18290): a loss on pairs of replies, of which one is preferred.

    L = - E[log sigmoid(beta (log pi(y_w|x) / pi_ref(y_w|x) - log pi(y_l|x) / pi_ref(y_l|x)))]        (eq. 7)

y_w    the chosen reply, y_l the rejected one
log pi(y|x)    the sum over the tokens of y
pi_ref    the reference policy; beta says how strongly pi stays near it

Shape suffixes: P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def implicit_rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return beta log(pi(y|x) / pi_ref(y|x)), the reward for which pi is optimal (section 4). Any shape."""
    return beta * (policy - reference)


def dpo_loss(policy: Tensor, reference: Tensor, beta: float, pairs: int | None = None) -> Tensor:
    """Compute L from the log-probs (P, 2) of whole replies, the chosen one first. Returns a scalar.

    `pairs` is the number of pairs of the mini-batch of which these are a piece; the losses of the pieces then sum to
    its loss. None takes P. Gradients flow only through `policy`. Raises ValueError on other shapes.
    """
    if policy.dim() != 2 or policy.shape[1] != 2 or policy.shape != reference.shape:
        raise ValueError(f"policy {tuple(policy.shape)} and reference {tuple(reference.shape)} must both be (P, 2)")
    chosen, rejected = implicit_rewards(policy, reference.detach(), beta).unbind(1)
    return -logsigmoid(chosen - rejected).sum() / (len(policy) if pairs is None else pairs)


def reply_log_prob(logps: Tensor) -> Tensor:
    """Return log pi(y|x), a scalar, from the log-probs (T,) of the tokens of y, summed in float32 at least."""
    return logps.to(torch.promote_types(logps.dtype, torch.float32)).sum()
