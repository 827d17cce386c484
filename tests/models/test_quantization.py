"""`model.quantize`: adapters on a rounded base; what cannot be rounded is refused before anything is loaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from agentrl.config.rules import machine, validate
from agentrl.core.errors import UserError
from agentrl.models.adapters import lora_config
from agentrl.models.loading import load_model, load_policy
from tests.support.families import family_checkpoint
from tests.support.helpers import changed, composed, small

IDS = torch.arange(5, 45)[None]
ADAPTERS = ("algo=grpo", "model/lora=on")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("algo=grpo", "model.quantize=int8"), "rounded weights cannot be trained; train adapters"),
        ((*ADAPTERS, "model.quantize=4bit"), "bitsandbytes computes on CUDA here; set model.quantize=int8"),
        ((*ADAPTERS, "model.quantize=8bit"), "bitsandbytes computes on CUDA"),
        ((*ADAPTERS, "hardware=gpu", "model.quantize=4bit"), "the package bitsandbytes is not installed; pip install"),
        ((*ADAPTERS, "model.quantize=int8"), "the package torchao is not installed; pip install"),
        ((*ADAPTERS, "hardware=gpu", "vllm.mode=colocate", "model.quantize=int8"), "vLLM would sample from the"),
    ],
)
def test_what_cannot_be_rounded_is_one_line(keys: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said) as error:
        validate(composed(*keys))
    assert "\n" not in str(error.value) and str(error.value).startswith("model.quantize=")


def test_an_adapter_is_no_base_to_round(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    with pytest.raises(UserError, match="merges an adapter into whole weights; run agentrl merge"):
        validate(composed("model=custom", f"model.path={tmp_path}", *ADAPTERS, "model.quantize=int8"))


needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="model.quantize=int8 needs the extra torchao")


@needs_torchao
def test_adapters_on_an_int8_base_are_merged_into_the_whole_one(tmp_path: Path) -> None:
    family_checkpoint(tmp_path / "base", "llama")
    keys = ("model=custom", f"model.path={tmp_path / 'base'}", "model.quantize=int8")
    config = small(*ADAPTERS, *keys)
    validate(config)
    rounded, whole = load_model(config.model), load_model(changed(config.model, quantize=None))
    with torch.no_grad():
        away = (rounded(IDS).logits - whole(IDS).logits).abs().max()
    assert 1e-4 < away < 0.1, "rounded, but not to something else"
    wanted = lora_config(config.model)
    assert wanted is not None
    wanted.init_lora_weights = False
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(config.model), wanted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = load_model(changed(config.model, path=str(tmp_path / "adapter")))
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, adapted.eval()(IDS).logits, atol=0.2, rtol=0.1)
    assert {type(one) for one in again.parameters()} == {torch.nn.Parameter}
    beside = load_policy(changed(config.model, path=str(tmp_path / "adapter")))
    with torch.no_grad():
        torch.testing.assert_close(beside(IDS).logits, adapted.eval()(IDS).logits, atol=0, rtol=0)
    trained_on_both = get_peft_model(again, wanted)
    trained_on_both.save_pretrained(tmp_path / "second")
    with pytest.raises(UserError, match="its base is an adapter, too, and is not rounded; set null"):
        load_policy(changed(config.model, path=str(tmp_path / "second")))
