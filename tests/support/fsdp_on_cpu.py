"""agentrl's worker under FSDP2 on CPU processes: python -m tests.support.fsdp_on_cpu RUN_DIR, started by torchrun.

accelerate offers FSDP for accelerators alone, so it is told that these processes are some; sharding and communication
are real.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from agentrl.trainers.grpo import AgentGRPOTrainer

init, training_step = state.AcceleratorState.__init__, AgentGRPOTrainer.training_step


def with_fsdp(self: Any, *args: Any, **kwargs: Any) -> None:
    shared = state.PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    init(self, *args, **kwargs)


def sharded_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    assert all(isinstance(parameter, DTensor) for parameter in self.model.parameters())
    return training_step(self, *args, **kwargs)


state.AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]
AgentGRPOTrainer.training_step = sharded_step  # type: ignore[method-assign]
sys.argv = ["worker", sys.argv[1]]
runpy.run_module("agentrl.runner.worker", run_name="__main__")
