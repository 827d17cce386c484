"""The reference policy of a KL term and of DPO: the policy at the start of training, even if that has an adapter.

TRL would load the model by the name in its configuration, which is the base model without adapters. If adapters are
trained, no second model is needed: TRL switches them off, or, if the policy started with adapters, to a copy of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer import grpo_trainer
from trl.trainer.utils import use_adapter

from agentrl.config.schema import Model
from agentrl.models.loading import load_model


def starting_policy(
    model: PreTrainedModel,
    config: Model | None,
    peft_config: PeftConfig | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel | None:
    """Return a frozen copy of `model`, or None if adapters are trained.

    `config` says how the model was loaded. If the copy is quantized or ZeRO-3 shards the model, it is loaded again
    with it. A resumed run builds its trainer before it loads the checkpoint, so it has the same reference.
    """
    if peft_config is not None or isinstance(model, PeftModel):
        return None
    if config is not None and (quantization is not None or is_deepspeed_zero3_enabled()):
        reference = load_model(config, quantization)  # neither can be made by copying the model
    else:
        reference = copy.deepcopy(model)
        reference.__dict__.pop("forward", None)  # remove TRL's patch, if another trainer has patched the original
    return reference.requires_grad_(False).eval()


@contextmanager
def use_as_reference(reference: PreTrainedModel | None) -> Iterator[None]:
    """Let a GRPOTrainer that is constructed in this block take `reference`, instead of loading one by name."""
    by_name = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_, **__: reference
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = by_name


def start_of_adapters(model: Any) -> AbstractContextManager[None]:
    """Within the returned context, a PEFT model computes as the policy at the start of training."""
    scope: AbstractContextManager[None] = use_adapter(model, "ref" if "ref" in model.peft_config else None)
    return scope
