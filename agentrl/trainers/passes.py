"""Forward and backward passes of one update on several processes: all run equally many, and sync on the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from agentrl.scoring.sequence import STAND_IN, Engine


def balanced(accelerator: Any, passes: int) -> int:
    """Return the largest number of passes that any process needs. Every process must run that many, or the others wait
    for ever.
    """
    if accelerator.num_processes == 1:
        return passes
    return int(accelerator.gather(torch.tensor([passes], device=accelerator.device)).max())


def stand_in(engine: Engine, model: Any) -> Tensor:
    """Run a pass whose loss is 0, for a process that has no piece left."""
    return 0.0 * engine.score(model, [STAND_IN]).logps[0].sum()


@contextmanager
def synced(accelerator: Any, model: Any, last: bool) -> Iterator[None]:
    """Around a pass: gradients are exchanged between processes, and DeepSpeed steps, on the last one alone.

    FSDP exchanges them on each, since it would have to keep them whole otherwise.
    """
    state = accelerator.gradient_state
    before = state.sync_gradients
    replicated = accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    with nullcontext() if last or not replicated else accelerator.no_sync(model):
        state._set_sync_gradients(before and last)
        try:
            yield
        finally:
            state._set_sync_gradients(before)
