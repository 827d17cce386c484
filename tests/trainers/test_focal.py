"""FocalLoRA: the heads by hand, the loss by hand, and that nothing but the chosen heads' query rows moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import get_peft_model

from agentrl.models.loading import load_model
from agentrl.objectives.focal import conflict_sensitivity, focal_loss, most_sensitive
from agentrl.trainers.focal_lora import collate, focal_config, keep_to_heads
from tests.support.helpers import composed


def test_the_most_sensitive_heads_by_hand() -> None:
    conflict = torch.tensor([[[0.2, 0.5], [0.1, 0.9]], [[0.4, 0.5], [0.3, 0.7]]])  # N = 2, L = 2, H = 2
    aligned = torch.tensor([[[0.6, 0.4], [0.2, 0.5]]])
    differences = conflict_sensitivity(conflict, aligned)
    assert differences.flatten().tolist() == pytest.approx([0.3, 0.1, 0.0, 0.3])
    assert most_sensitive(torch.tensor([[0.3, 0.1], [0.0, 0.31]]), 0.5).tolist() == [[True, False], [False, True]]
    assert int(most_sensitive(differences, 0.01).sum()) == 1  # at least one


def test_the_loss_by_hand() -> None:
    # One row of three tokens, two heads; the system's key is the first, the last two queries count.
    first = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]
    second = [[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.8, 0.1, 0.1]]
    attention = torch.tensor([[first, second]])
    system = torch.tensor([[True, False, False]])
    queries = torch.tensor([[False, True, True]])
    loss, mass = focal_loss([attention], system, queries, torch.tensor([[True, False]]), eps=0.0)
    assert float(loss) == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2)
    assert float(mass) == pytest.approx(0.375)
    both, _ = focal_loss([attention], system, queries, torch.tensor([[True, True]]), eps=0.0)
    assert float(both) == pytest.approx(-sum(map(math.log, (0.5, 0.25, 0.9, 0.8))) / 4)
    two, _ = focal_loss([attention, attention], system, queries, torch.tensor([[True, False], [False, True]]), eps=0.0)
    assert float(two) == pytest.approx(float(both))


@pytest.mark.parametrize("count", [None, torch.tensor(0.0)])
def test_replies_without_a_token_have_a_loss_of_0(count: torch.Tensor | None) -> None:
    attention = torch.full((1, 2, 3, 3), 1 / 3, requires_grad=True)
    none = torch.zeros(1, 3, dtype=torch.bool)
    loss, mass = focal_loss([attention], ~none, none, torch.tensor([[True, False]]), count)
    loss.backward()
    assert loss.item() == mass.item() == 0 and attention.grad is not None and not attention.grad.any()


def test_the_gradient_of_the_loss_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    system, queries = torch.rand(2, 4, generator=generator) < 0.5, torch.rand(2, 4, generator=generator) < 0.7
    heads = torch.tensor([[True, True]])

    def of(scores: torch.Tensor) -> torch.Tensor:
        return focal_loss([scores.softmax(-1)], system, queries, heads)[0]

    assert torch.autograd.gradcheck(of, (scores,))


def test_only_the_chosen_heads_rows_move() -> None:
    model = load_model(composed().model)
    heads = torch.zeros(4, 4, dtype=torch.bool)
    heads[1, 2] = heads[3, 0] = True
    lora = composed("model/lora=on", "model.lora.r=2").model.lora
    before = {layer: query(model, layer).clone() for layer in range(4)}
    adapted: Any = get_peft_model(model, focal_config(model, heads, lora))
    keep_to_heads(adapted, heads, model.config.head_dim)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        adapted(torch.arange(20, 40)[None]).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = adapted.merge_and_unload()
    moved = torch.stack(
        [(query(merged, n) - before[n]).abs().view(4, model.config.head_dim, -1).amax((1, 2)) > 0 for n in range(4)]
    )
    assert torch.equal(moved, heads)


def query(model: Any, layer: int) -> torch.Tensor:
    weight: torch.Tensor = model.model.layers[layer].self_attn.q_proj.weight.detach()
    return weight


def test_rows_are_padded_on_the_right() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "system": [True, False, False], "onset": [False, True, False]},
        {"input_ids": [8], "system": [True], "onset": [True]},
    ]
    batch = collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["system"].tolist() == [[True, False, False], [True, False, False]]
    assert batch["onset"].tolist() == [[False, True, False], [True, False, False]]
