"""Forward and backward passes of one update on several processes: all run equally many, and sync on the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from agentrl.scoring.sequence import STAND_IN, Engine, Scores


def balanced(accelerator: Any, passes: int) -> int:
    """Return the largest number of passes that any process needs. Every process must run that many, or the others wait
    for ever.
    """
    if accelerator.num_processes == 1:
        return passes
    return int(accelerator.gather(torch.tensor([passes], device=accelerator.device)).max())


def stand_in(engine: Engine, model: Any, entropies: bool = False) -> Tensor:
    """Run a pass whose loss is 0, for a process that has no piece left; `entropies`: see `through_head`."""
    return through_head(engine.score(model, [STAND_IN]), entropies)


def through_head(scores: Scores, entropies: bool) -> Tensor:
    """Return 0 with a graph through the log-probs and, if the loss of other passes has such a term, the entropies.

    DeepSpeed ZeRO-3 wants every backward pass to go through the same outputs on all processes, or they wait for each
    other for ever.
    """
    return 0.0 * torch.cat(scores.logps + (scores.entropies if entropies else [])).sum()


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
