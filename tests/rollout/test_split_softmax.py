"""Split-Softmax in a real network: what it raises, what it leaves, and that it ends with the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentrl.models.loading import load_model
from agentrl.objectives.attention import split_softmax
from agentrl.rollout.split_softmax import KERNEL, attend, raise_system_attention
from tests.support.helpers import composed


@pytest.fixture
def model() -> Any:
    return load_model(composed().model.model_copy(update={"attn_implementation": "eager"})).eval()


IDS = torch.arange(20, 52).view(2, 16)
SYSTEM = torch.zeros(2, 16, dtype=torch.bool)
SYSTEM[0, 1:6] = SYSTEM[1, 3:9] = True


def attentions(model: Any, ids: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model(ids, output_attentions=True, **more).attentions)


def test_the_kernel_is_eager_attention_where_nothing_is_raised(model: Any) -> None:
    with torch.no_grad():
        plain = model(IDS).logits
        with raise_system_attention(model, SYSTEM, 1.0):
            assert torch.allclose(model(IDS).logits, plain, atol=1e-5)  # p^1 = p
        with raise_system_attention(model, torch.zeros_like(SYSTEM), 0.3):
            assert torch.allclose(model(IDS).logits, plain, atol=1e-5)  # no span
        assert torch.equal(model(IDS).logits, plain) and model.config._attn_implementation == "eager"


def test_the_first_layer_is_raised_from_the_last_prompt_token_on(model: Any) -> None:
    plain = attentions(model, IDS)[0]
    with raise_system_attention(model, SYSTEM, 0.4):
        after = attentions(model, IDS)[0]
    assert torch.allclose(after[:, :, :-1], plain[:, :, :-1], atol=1e-6)
    assert torch.allclose(after[:, :, -1:], split_softmax(plain[:, :, -1:], SYSTEM, 0.4), atol=1e-6)
    mass = (plain[:, :, -1] * SYSTEM[:, None]).sum(-1)
    assert torch.allclose((after[:, :, -1] * SYSTEM[:, None]).sum(-1), mass**0.4, atol=1e-5)


def test_generated_tokens_are_raised_too_and_caches_do_not_matter(model: Any) -> None:
    longer = torch.cat([IDS, torch.tensor([[60, 61], [62, 63]])], dim=1)
    with raise_system_attention(model, SYSTEM, 0.4), torch.no_grad():
        assert model.config._attn_implementation == KERNEL
        whole = model(longer).logits[:, -1]
        past = model(IDS, use_cache=True).past_key_values
        for position in (16, 17):
            step = model(longer[:, position : position + 1], past_key_values=past, use_cache=True)
        assert torch.allclose(step.logits[:, -1], whole, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(model(longer).logits[:, -1], whole, atol=1e-2)


def test_left_padding_changes_nothing(model: Any) -> None:
    short = IDS[:1, 4:]
    span = SYSTEM[:1, 4:]
    padded, mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), torch.ones(1, 16, dtype=torch.long)
    mask[:, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        with raise_system_attention(model, span, 0.4):
            alone = model(short).logits[:, -1]
        with raise_system_attention(model, torch.nn.functional.pad(span, (4, 0)), 0.4):
            beside = model(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
    assert torch.allclose(alone, beside, atol=1e-4)


def test_it_ends_with_an_error(model: Any) -> None:
    with pytest.raises(TypeError), raise_system_attention(model, SYSTEM, 0.4):
        model("no tensor")
    assert model.config._attn_implementation == "eager"
    query = torch.randn(1, 2, 3, 4)
    output, weights = attend(torch.nn.Module(), query, query[:, :1], query[:, :1], None, 0.5)
    assert output.shape == (1, 3, 2, 4) and torch.allclose(weights.sum(-1), torch.ones(1, 2, 3))
