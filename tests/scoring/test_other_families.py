"""Families with layers of their own: packed where their attention allows it, else padded with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentrl.core.errors import UserError
from agentrl.scoring.choose import scoring_engine
from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.padded import PaddedEngine
from tests.scoring.test_engines import assert_equal, drawn, gradients
from tests.support.networks import network

LATENT: dict[str, Any] = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize("size", [8, 24])
def test_heads_whose_values_have_another_size_are_packed(size: int) -> None:
    model = network("deepseek_v3", **LATENT, **EXPERTS, v_head_dim=size, num_key_value_heads=4)
    plain = gradients(PaddedEngine(), model, drawn())
    engine = PackedEngine()
    engine.prepare(model)
    assert_equal(gradients(engine, model, drawn()), plain)
    assert engine.cost(drawn()) < 0.55 * PaddedEngine().cost(drawn())


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_layers_that_keep_the_tree_to_themselves_are_padded(family: str) -> None:
    model: Any = network(family)
    plain = gradients(PaddedEngine(), model, drawn())
    said: list[str] = []
    engine = scoring_engine("auto", [model], False, said.append)
    for _ in range(2):
        assert_equal(gradients(engine, model, drawn()), plain)
    assert len(said) == 1 and "cannot be packed: its layers do not hand keywords on" in said[0]
    groups = [[one] for one in drawn()]
    assert engine.cost(drawn()) == PaddedEngine().cost(drawn())
    assert engine.cut(groups, 150) == PaddedEngine().cut(groups, 150)
    with pytest.raises(UserError, match="this model cannot be packed"):
        scoring_engine("packed", [network(family)], False, said.append).score(model, drawn())


@pytest.mark.parametrize(("family", "changes"), [("gpt2", {"attn_pdrop": 0.1}), ("biogpt", {})])
def test_dropout_in_attention_is_told_under_any_name(family: str, changes: dict[str, Any]) -> None:
    assert why_not_packed(network(family, **changes)) == "it uses dropout in attention"


def test_dropout_that_no_name_tells_is_found_in_the_first_pass() -> None:
    model: Any = network()
    said: list[str] = []
    engine = scoring_engine("auto", [model], False, said.append)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    found = []
    for one in (engine, PaddedEngine()):
        torch.manual_seed(0)
        found.append(gradients(one, model, drawn()))
    assert_equal(found[0], found[1])
    assert len(said) == 1 and "it uses dropout in attention" in said[0]
