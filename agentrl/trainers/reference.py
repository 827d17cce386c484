"""What a KL term and DPO measure from: the policy as it starts, also where that is an adapter on its base.

TRL would load the name in the model's configuration, which is that of the bare base. Where adapters are trained it
needs no second model: it switches them off, or, where it was handed some, to a copy of them.
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
    """A frozen copy of `model`, None where adapters are trained. `config` says how it was loaded, and is how again.

    A resumed run builds its trainer from the same start and loads the checkpoint later, so it has the same reference.
    """
    if peft_config is not None or isinstance(model, PeftModel):
        return None
    if config is not None and (quantization is not None or is_deepspeed_zero3_enabled()):
        reference = load_model(config, quantization)  # neither to be made from weights nor from parts of them
    else:
        reference = copy.deepcopy(model)
        reference.__dict__.pop("forward", None)  # TRL's patch of the original, if another trainer has put it there
    return reference.requires_grad_(False).eval()


@contextmanager
def use_as_reference(reference: PreTrainedModel | None) -> Iterator[None]:
    """While GRPOTrainer is constructed: it takes `reference` where it would load one by the policy's name."""
    by_name = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_, **__: reference
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = by_name


def start_of_adapters(model: Any) -> AbstractContextManager[None]:
    """While it lasts, a PEFT model is the policy as it started."""
    scope: AbstractContextManager[None] = use_adapter(model, "ref" if "ref" in model.peft_config else None)
    return scope
