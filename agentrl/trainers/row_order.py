"""Sets the order of prompts over epochs and of rows over mini-batches, both different from TRL's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends only on seed and epoch, so a resumed run sees the same order."""

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of an epoch. Call it at the start of every epoch, also of one that a run resumes in."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)

    def rollout_batch(self, number: int) -> list[int]:
        """Return the rows of rollout batch `number` of all processes. Each prompt occurs `mini_repeat_count` times."""
        epoch, place = divmod(number, self.num_samples // self.batch_size)
        order = EpochSampler(
            self.data_source, self.mini_repeat_count, self.batch_size, shuffle=self.shuffle, seed=self.seed
        )
        order.set_epoch(epoch)
        rows = self.mini_repeat_count * self.batch_size
        return list(order)[place * rows : (place + 1) * rows]


class SeedEpochs(TrainerCallback):
    """Tells the sampler which epoch begins. accelerate does not do so in every resumed run."""

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


def restore_row_order(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Undo TRL's shuffle: the rows of all `chunks` sorted by their `row` entry and cut again as before."""
    size = len(chunks[0]["row"])
    order = torch.argsort(torch.cat([chunk["row"] for chunk in chunks]))
    ordered: list[dict[str, Any]] = [{} for _ in chunks]
    for name, first in chunks[0].items():
        if first is None or (isinstance(first, Tensor) and first.dim() == 0):
            columns = [chunk[name] for chunk in chunks]
        elif isinstance(first, Tensor):
            columns = list(torch.cat([chunk[name] for chunk in chunks])[order].split(size))
        else:
            flat = [value for chunk in chunks for value in chunk[name]]
            values = [flat[i] for i in order.tolist()]
            columns = [values[start : start + size] for start in range(0, len(values), size)]
        for chunk, column in zip(ordered, columns, strict=True):
            chunk[name] = column
    return ordered


PER_TOKEN = (
    *("completion_mask", "completion_ids", "tool_mask", "advantages"),
    *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
    *("prompt_old_logps", "conditioned_weight", "teacher_logps"),
)


def crop_padding(chunk: dict[str, Any]) -> dict[str, Any]:
    """Remove the padding of a mini-batch that only longer rows of the rollout batch need."""
    width, used = chunk["completion_ids"].shape[1], int(chunk["completion_mask"].sum(1).max())
    shorter = dict(chunk)
    for name in PER_TOKEN:
        value = chunk.get(name)
        if value is not None and value.dim() == 2 and value.shape[1] == width:
            shorter[name] = value[:, :used]
    for ids, mask in (("prompt_ids", "prompt_mask"), ("context_ids", "context_mask")):
        if ids in chunk:
            kept = int(chunk[mask].sum(1).max())
            shorter[ids], shorter[mask] = chunk[ids][:, -kept:], chunk[mask][:, -kept:]
    return shorter
