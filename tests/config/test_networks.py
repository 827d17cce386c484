"""Shapes of networks: their sizes are those of transformers' networks, and config.json is read as loading reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.config.networks import KNOWN, Network, known_network, read_network
from agentrl.config.shipped import option_files, read_option
from tests.support.helpers import composed

KINDS = {"Qwen2.5": "qwen2", "Qwen3": "qwen3", "SmolLM2": "llama", "Llama": "llama", "gemma": "gemma3_text"}


def kind_of(name: str) -> str | None:
    own = name.partition("/")[2]
    return next((kind for start, kind in KINDS.items() if own.startswith(f"{start}-")), None)


@pytest.mark.parametrize("name", [name for name in KNOWN if kind_of(name)])
def test_a_known_network_has_the_size_of_the_real_one(name: str) -> None:
    """The network is built without memory for its weights. Norms and biases are left out of the sum."""
    one = KNOWN[name]
    config = AutoConfig.for_model(
        kind_of(name),
        vocab_size=one.vocabulary,
        hidden_size=one.hidden,
        intermediate_size=one.mlp,
        num_hidden_layers=one.layers,
        num_attention_heads=one.queries,
        num_key_value_heads=one.shared,
        head_dim=one.width,
        tie_word_embeddings=one.tied,
    )
    with torch.device("meta"):
        real = AutoModelForCausalLM.from_config(config)
    assert one.parameters == pytest.approx(sum(weights.numel() for weights in real.parameters()), rel=1e-3)
    content = config.to_dict() | {"layer_types": None}
    assert read_network(json.loads(json.dumps(content, default=str))) == one


def test_qwen3_4b_by_hand() -> None:
    one = KNOWN["Qwen/Qwen3-4B"]
    # a layer: q and o 2560 x 4096, k and v 2560 x 1024, three of 2560 x 9728; the embedding 151936 x 2560 is tied
    layer = 2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728
    assert one.body == 36 * layer and one.parameters == 36 * layer + 151936 * 2560 == 4_022_272_000
    assert one.cached_bytes("bfloat16") == 36 * 2 * 8 * 128 * 2
    # rank 16: inputs plus outputs of the seven modules
    wide = 2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728)
    assert one.adapter(16) == one.adapter(16, "all-linear") == 36 * 16 * wide
    assert one.adapter(8, ["q_proj", "v_proj"]) == 36 * 8 * (2560 + 4096 + 2560 + 1024)


@pytest.mark.slow
def test_every_preset_has_a_shape() -> None:
    for name, file in option_files("model").items():
        path = read_option(file)["path"]
        assert path == "???" or known_network(composed(f"model={name}")) is not None, name


def test_a_directory_is_counted_and_an_adapter_has_the_shape_of_its_base(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}, "__metadata__": {}}'
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"vocab_size": 32}))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(60))
    found = known_network(composed(f"model.path={tmp_path}"))
    assert found == Network(2, 8, 16, 2, 2, 4, 32, True, size=15.0) and found.parameters == 15
    (tmp_path / "model.safetensors").write_bytes(b"\x05")  # damaged: the shape says how many there are
    found = known_network(composed(f"model.path={tmp_path}"))
    assert found is not None and found.parameters == 2 * (4 * 8 * 8 + 3 * 8 * 16) + 32 * 8
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for base, wanted in ((str(tmp_path), found), ("Qwen/Qwen3-4B", KNOWN["Qwen/Qwen3-4B"]), ("who/knows", None)):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert known_network(composed(f"model.path={adapter}")) == wanted
    (tmp_path / "config.json").write_text("[]")
    assert known_network(composed(f"model.path={tmp_path}")) is None


def test_layers_without_keys_and_values_and_experts_are_read() -> None:
    content = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 32}
    content |= {"intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"] * 2}
    hybrid = read_network(content)
    assert hybrid is not None and hybrid.attention == 2 and hybrid.cached_bytes("float32") == 2 * 2 * 2 * 4 * 4
    experts = read_network(content | {"num_experts_per_tok": 3, "moe_intermediate_size": 5})
    assert experts is not None and experts.mixture and experts.mlp == 15
    assert read_network({"model_type": "gpt2"}) is None
