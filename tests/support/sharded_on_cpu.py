"""agentrl's worker with sharded weights on CPU processes: python -m tests.support.sharded_on_cpu RUN_DIR.

accelerate offers FSDP and DeepSpeed for accelerators alone, so it is told that these processes are some; sharding and
communication are real. `accelerate launch` starts it with the file that says which of the two.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer

from agentrl.trainers.loss import LossTrainer

init, training_step = state.AcceleratorState.__init__, Trainer.training_step
compute_loss = LossTrainer.compute_loss


def as_accelerators(self: Any, *args: Any, **kwargs: Any) -> None:
    """AcceleratorState for processes that it takes for ones with a device of their own."""
    os.environ.pop("ACCELERATE_USE_CPU", None)
    shared = state.PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    init(self, *args, **kwargs | {"cpu": False})


def sharded_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A training step of a model that is as sharded as the file says."""
    if self.is_fsdp_enabled:
        assert all(isinstance(parameter, DTensor) for parameter in self.model.parameters())
    else:
        assert self.is_deepspeed_enabled and self.deepspeed.zero_optimization_partition_gradients()
        whole = [parameter for parameter in self.model.parameters() if not hasattr(parameter, "ds_id")]
        assert (whole == []) == self.deepspeed.zero_optimization_partition_weights()
    return training_step(self, *args, **kwargs)


def poisoned_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The loss, or NaN in the update that the environment names."""
    loss = compute_loss(self, *args, **kwargs)
    named = os.environ.get("POISONED_UPDATE") == str(self.state.global_step + 1)
    return loss * float("nan") if named else loss


state.AcceleratorState.__init__ = as_accelerators  # type: ignore[method-assign]
Trainer.training_step = sharded_step  # type: ignore[method-assign]
LossTrainer.compute_loss = poisoned_loss  # type: ignore[method-assign]
sys.argv = ["worker", sys.argv[1]]
runpy.run_module("agentrl.runner.worker", run_name="__main__")
