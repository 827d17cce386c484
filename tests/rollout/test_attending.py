"""The last tokens of all rows attend together as if each were alone; norms are joined where that changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentrl.rollout.attending import Pass, attend, current
from agentrl.rollout.key_values import Cached, Shelf
from agentrl.rollout.norms import joined_norms

HEADS, GROUPS, SIZE = 2, 3, 4


def filled(lengths: list[int], width: int, seed: int) -> Shelf[Cached]:
    """Slots that hold `lengths` tokens each of random keys and values."""
    shelf: Shelf[Cached] = Shelf()
    for length in lengths:
        shelf.put(Cached(list(range(length))))
    if lengths:
        shelf.fit(width, 10_000)
    empty = torch.zeros(1, HEADS, 0, SIZE)
    draw = torch.Generator().manual_seed(seed)
    for whole in shelf.layer(0, empty, empty):
        whole.copy_(torch.randn(whole.shape, generator=draw))  # what lies beyond the tokens must not matter
    return shelf


@pytest.mark.parametrize(
    "reads",
    [
        [(0, 5), (None, 0), (0, 5), (2, 40), (2, 40)],  # one row without a trunk, and a trunk that nobody reads
        [(0, 5), (0, 5), (0, 5), (1, 3), (1, 3)],
        [(None, 0)] * 5,
        [(1, 3)],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_attends_to_its_trunk_and_its_own_slot_alone(reads: Any, dtype: torch.dtype) -> None:
    held = [0, 7, 33, 2, 1][: len(reads)]  # tokens of the slot before the new one
    rows, trunks = filled(held, 40, 1), filled([5, 3, 40], 40, 2)
    for shelf in (rows, trunks):
        shelf._layers[0] = tuple(one.to(dtype) for one in shelf._layers[0])  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, heads, len(reads), SIZE, generator=draw).to(dtype) for heads in (HEADS * GROUPS, HEADS, HEADS)
    )
    where = torch.tensor([range(len(reads)), held])[:, None, None]
    nothing = torch.zeros(2, 1, 1, 0, dtype=torch.long)
    current[:] = [Pass(rows, trunks, tuple(where), tuple(nothing), max(held) + 1, tuple(reads), [])]
    found = attend(SimpleNamespace(layer_idx=0), query, key, value, None, scaling=0.3)[0]  # type: ignore[arg-type]
    current.clear()
    assert found.shape == (1, len(reads), HEADS * GROUPS, SIZE) and found.dtype == dtype
    for row, (trunk, base) in enumerate(reads):
        parts = [
            torch.cat([above[trunk or 0, :, :base], own[row, :, : held[row]], new[0, :, row : row + 1]], dim=1)
            for above, own, new in zip(trunks._layers[0], rows._layers[0], (key, value), strict=True)
        ]
        keys, values = (one.double().repeat_interleave(GROUPS, 0) for one in parts)
        weights = (keys @ query[0, :, row, :, None].double() * 0.3).softmax(1)
        wanted = (weights * values).sum(1)
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found[0, row].double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_norms_are_the_norms_of_the_model(family: str, dtype: torch.dtype) -> None:
    model = norms_of(family, dtype)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before = {name: module(hidden[..., : len(module.weight)].to(dtype)) for name, module in model.items()}
    mixed = {name: module(hidden[..., : len(module.weight)].bfloat16()) for name, module in model.items()}
    with joined_norms(model):
        for name, module in model.items():
            assert "forward" in vars(module)
            torch.testing.assert_close(module(hidden[..., : len(module.weight)].to(dtype)), before[name])
            torch.testing.assert_close(module(hidden[..., : len(module.weight)].bfloat16()), mixed[name])
    assert not any("forward" in vars(module) for module in model.values())


def norms_of(family: str, dtype: torch.dtype) -> torch.nn.ModuleDict:
    """The norms of a small network, with weights that differ."""
    from tests.support.networks import network

    found = torch.nn.ModuleDict()
    for number, (name, module) in enumerate(network(family).to(dtype).named_modules()):
        if "norm" in name:
            found[name.replace(".", "_")] = module
            torch.nn.init.normal_(module.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(number))
    assert found
    return found


@pytest.mark.parametrize("family", ["gemma", "olmo2"])
def test_norms_that_compute_anything_else_stay(family: str) -> None:
    norms = norms_of(family, torch.float32)
    weights = {len(module.weight) for module in norms.values()}
    hidden = {size: torch.randn(3, size, generator=torch.Generator().manual_seed(0)).bfloat16() for size in weights}
    before = {name: module(hidden[len(module.weight)]) for name, module in norms.items()}
    with joined_norms(norms):
        for name, module in norms.items():
            assert torch.equal(module(hidden[len(module.weight)]), before[name])


def test_a_norm_that_somebody_has_replaced_stays() -> None:
    norms = norms_of("llama", torch.float32)
    one: Any = next(iter(norms.values()))
    one.forward = lambda hidden: hidden
    with joined_norms(norms):
        assert one(torch.ones(32)).sum() == 32
    assert "forward" in vars(one)


class DoubledRMSNorm(torch.nn.Module):
    """Looks like the norms of Llama, and computes something else."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = 2 * self.weight * torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], None, 1e-6)
        return normed


@pytest.mark.parametrize("size", [0, 16])
def test_a_norm_is_judged_by_what_it_computes_whatever_its_weight_holds(size: int) -> None:
    """Outside of the model's forward pass the weight of a norm is empty under ZeRO-3."""
    model = torch.nn.ModuleList([type("DoubledRMSNorm", (DoubledRMSNorm,), {})(size)])
    with joined_norms(model):
        assert "forward" not in vars(model[0])
