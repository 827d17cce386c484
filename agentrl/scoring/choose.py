"""Chooses the scoring engine: the packed one, or the padded one if a model cannot be packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agentrl.config.schema import Model
from agentrl.core.errors import UserError
from agentrl.models.adapters import network_config
from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.sequence import Engine

DEMANDED = ("packed", "compiled")  # engines that a user asks for by name; auto may fall back to padded rows


def check_engine(name: str, model: Model) -> None:
    """With trainer.engine=packed or compiled, check before the weights are loaded that the model can be packed.

    Raises UserError if it cannot.
    """
    config = network_config(model) if name in DEMANDED else None
    if config is None:
        return
    with torch.device("meta"):
        try:
            network = AutoModelForCausalLM.from_config(config, attn_implementation=model.attn_implementation)
        except (ValueError, KeyError):  # an unknown architecture; the error is reported when the weights are loaded
            return
    if reason := why_not_packed(network, bool(getattr(config.get_text_config(), "output_router_logits", False))):
        raise _refusal(name, reason)


def scoring_engine(name: str, models: Sequence[Any], router: bool, say: Callable[[str], None]) -> Engine:
    """Make the engine `name` (auto, packed, compiled or padded) for all of `models`.

    auto takes packed. If one of the models cannot be packed, it takes padded and calls `say` with the reason; packed
    and compiled raise UserError instead. router: whether the router loss of a mixture of experts is trained on.
    """
    if name == "padded":
        return PaddedEngine()

    def give_up(reason: str) -> None:
        if name in DEMANDED:
            raise _refusal(name, reason)
        say(f"using trainer.engine=padded, since this model cannot be packed: {reason}")

    for model in models:
        if reason := why_not_packed(model, router):
            give_up(reason)
            return PaddedEngine()
    engine = PackedEngine(compiled=name == "compiled", give_up=give_up)
    for model in models:
        engine.prepare(model)
    return engine


def _refusal(name: str, reason: str) -> UserError:
    return UserError(f"trainer.engine={name}: this model cannot be packed: {reason}; set trainer.engine=auto or padded")
