"""Split-Softmax for sampling: an attention kernel that raises the attention mass on the system prompt.

transformers calls the kernel registered as KERNEL in every layer. `raise_system_attention` tells it which keys belong
to the system prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from agentrl.chat.format import ChatFormat
from agentrl.core.engine import Decoding, Episode, RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory
from agentrl.models.spans import prompt_spans
from agentrl.objectives.attention import split_softmax

KERNEL = "agentrl_split_softmax"


@dataclass
class _KernelState:
    """State of the kernel while a batch is sampled: the mask (B, P) of the system prompt's keys, and the exponent."""

    system: Tensor | None = None
    k: float = 1.0


_state = _KernelState()


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention of query (B, H, Q, D) to key and value (B, H', K, D). Returns (B, Q, H, D) and (B, H, Q, K).

    From the last prompt token on, queries get a raised mass on the system prompt's keys. Earlier queries attend as
    usual.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = scores.softmax(-1, dtype=torch.float32)
    if _state.system is not None:
        queries, keys = weights.shape[2:]
        prompt = _state.system.shape[1]
        system = torch.nn.functional.pad(_state.system, (0, keys - prompt))
        responding = torch.arange(keys - queries, keys, device=weights.device) >= prompt - 1
        if responding.any():
            weights = torch.where(responding[:, None], split_softmax(weights, system, _state.k), weights)
    weights = weights.to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, eager_mask)


@contextmanager
def raise_system_attention(model: PreTrainedModel, system: Tensor, k: float) -> Iterator[None]:
    """Set the kernel on `model` for the block: it raises the mass p on the system prompt to p^k.

    system: mask (B, P) of the system prompt's keys in the left-padded prompts.
    """
    usual = model.config._attn_implementation
    model.set_attn_implementation(KERNEL)
    _state.system, _state.k = system.to(model.device), k
    try:
        yield
    finally:
        _state.system = None
        model.set_attn_implementation(usual)


class SplitSoftmaxEngine:
    """An engine that samples every reply under Split-Softmax. It takes single turns only: the mask fits one prompt."""

    def __init__(self, inner: RolloutEngine, model: PreTrainedModel, chat: ChatFormat, k: float) -> None:
        types = getattr(model.config, "layer_types", None) or []
        if any(kind != "full_attention" for kind in types) or getattr(model.config, "attn_logit_softcapping", None):
            raise UserError(
                "algo=split_softmax: this model does not attend to its whole prompt by a plain softmax; choose another "
                "model"
            )
        self._inner, self._model, self._chat, self._k = inner, model, chat, k

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """See `RolloutEngine.rollout`."""
        spans = [prompt_spans(self._chat, episode.task.prompt, "message").system for episode in episodes]
        width = max(len(span) for span in spans)
        system = torch.stack([torch.nn.functional.pad(span, (width - len(span), 0)) for span in spans])
        with raise_system_attention(self._model, system, self._k):
            return self._inner.rollout(episodes, decoding)
