"""Cuts an update into several forward and backward passes within the token budget. All processes run equally many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from agentrl.scoring.sequence import STAND_IN, Engine, Scores
from agentrl.trainers.step_log import StepLog


class CutsUpdates:
    """A trainer that cuts an update into pieces. It comes before TRL's trainer among the base classes.

    TRL's micro-batch is the whole mini-batch here: the rows of one update on a process. Each piece of it has its own
    forward and backward pass. Losses and gradients of the pieces sum to those of the mini-batch. A method implements
    `cut`, which returns the pieces, and `piece_loss`, which returns the loss of a piece.
    """

    # Attributes of transformers' and TRL's trainers.
    accelerator: Any
    model: Any
    state: Any
    _metrics: Any
    router_aux_loss_coef: float

    scorer: Engine
    log_step: StepLog  # collects the values of the present update

    def cut(self, inputs: Any) -> list[Any]:
        """Cut a mini-batch into pieces. Return at least one."""
        raise NotImplementedError

    def piece_loss(self, model: Any, piece: Any) -> Tensor:
        """Return the share of a piece in the loss of its mini-batch."""
        raise NotImplementedError

    def idle_loss(self, model: Any) -> Tensor:
        """Run a pass of `model` and return a loss of 0, for a process without a piece while others still have one."""
        return run_idle_pass(self.scorer, model)

    def piece_done(self, piece: Any) -> None:
        """Do nothing. It is called after the passes of each piece, and a subclass may override it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a mini-batch. All pieces but the last have had their backward pass when it returns."""
        self.log_step = StepLog()
        pieces = self.cut(inputs)
        passes, done = agree_on_passes(self.accelerator, len(pieces)), torch.zeros((), device=self.accelerator.device)
        for number in range(passes):
            last, piece = number == passes - 1, pieces[number] if number < len(pieces) else None
            with sync_on_last(self.accelerator, model, last):
                loss = self.idle_loss(model) if piece is None else self.piece_loss(model, piece)
                if not last:
                    self.accelerator.backward(loss)
                    done += loss.detach()
            if piece is not None:
                self.piece_done(piece)
        self.log_step.write(self.accelerator, self._metrics["train" if self.model.training else "eval"])
        return loss + done

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a line, and forget a loss that is no number.

        transformers sets the loss x that it has summed up to x - x before it logs, which stays NaN for ever if x is NaN
        or infinite.
        """
        summed: Tensor | None = getattr(self, "_tr_loss", None)  # only a trainer that trains has it
        if summed is not None and not summed.isfinite():
            summed.zero_()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]  # of transformers' trainer

    def add_router_loss(self, loss: Tensor, scores: Scores, share: float) -> Tensor:
        """Add the load-balancing loss of a mixture of experts, for a piece that is `share` of the update."""
        if scores.router is None:
            return loss
        router = scores.router * share
        self.log_step.add("aux_loss", router)
        return loss + self.router_aux_loss_coef * router

    def count_tokens(self, mask: Tensor) -> None:
        """Count the tokens of `mask`, of all processes, as seen; the trainer's state keeps them across a resumption."""
        self.state.num_input_tokens_seen += int(self.accelerator.gather(mask.sum()).sum())
        self.log_step.constant("num_tokens", self.state.num_input_tokens_seen)


def agree_on_passes(accelerator: Any, passes: int) -> int:
    """Return the largest number of passes that any process needs.

    Every process must run that many, or the others wait for ever.
    """
    if accelerator.num_processes == 1:
        return passes
    return int(accelerator.gather(torch.tensor([passes], device=accelerator.device)).max())


def run_idle_pass(engine: Engine, model: Any, entropies: bool = False) -> Tensor:
    """Run a pass whose loss is 0, for a process that has no piece left; `entropies`: see `through_head`."""
    return through_head(engine.score(model, [STAND_IN]), entropies)


def through_head(scores: Scores, entropies: bool) -> Tensor:
    """Return 0 with a graph through the log-probs and, if the loss of other passes has such a term, the entropies.

    With DeepSpeed ZeRO-3 every backward pass must go through the same outputs on all processes, or they wait for each
    other for ever.
    """
    return 0.0 * torch.cat(scores.logps + (scores.entropies if entropies else [])).sum()


@contextmanager
def sync_on_last(accelerator: Any, model: Any, last: bool) -> Iterator[None]:
    """Wrap a pass so that processes exchange gradients, and DeepSpeed steps, only on the last pass of an update.

    FSDP exchanges gradients on every pass, since it would have to keep whole gradients otherwise.
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
