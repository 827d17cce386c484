"""TRL's head on a CPU scores few places at a time; that changes memory and time, and no value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from agentrl.cost.memory import CPU_TILE
from agentrl.models.loading import load_model
from agentrl.scoring import head
from tests.support.helpers import composed


def scored(places: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], dict[str, Tensor], list[int]]:
    """Log-probs and entropies of 40 tokens, the gradients of their sum, and the sizes of the tiles."""
    monkeypatch.setattr(head, "CPU_PLACES", places)
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", 4096)  # put back afterwards
    sizes: list[int] = []
    for name in ("_forward_tile", "_backward_tile"):
        plain = getattr(chunked_logprob, name)

        def spy(tile: Tensor, *arguments: Any, plain: Any = plain, **options: Any) -> Any:
            sizes.append(tile.shape[0])
            return plain(tile, *arguments, **options)

        monkeypatch.setattr(chunked_logprob, name, spy)
    model = load_model(composed().model)
    add_fused_lm_head(model, 1.0)
    ids = torch.arange(5, 46)[None]
    output = head.score_places(model, torch.arange(40), ids[0, 1:], input_ids=ids)
    output.log_probs.sum().backward()
    return [output.log_probs, output.entropy], {n: p.grad for n, p in model.named_parameters()}, sizes


def test_small_tiles_give_the_values_and_gradients_of_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as once:
        values, gradients, sizes = scored(4096, once)
    with monkeypatch.context() as once:
        same, near, small = scored(16, once)
    assert set(sizes) == {40} and set(small) == {16, 8} and len(small) == 3 * len(sizes)
    for one, other in zip(values, same, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(near[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_the_plan_counts_the_tiles_that_are_made() -> None:
    assert CPU_TILE[0] == head.CPU_PLACES
