"""The architectures that people have: usual LoRA targets, and an adapter says the same alone and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from agentrl.config.shipped import option_files, read_option
from agentrl.models.adapters import check_lora, lora_config
from agentrl.models.loading import Needs, load_chat, load_model
from tests.support.families import FAMILIES, family_checkpoint
from tests.support.helpers import composed

IDS = torch.arange(5, 45)[None]  # longer than the windows
# Modules that the usual targets leave out: two small ones of Qwen3.5's linear attention, which make one number a head.
LEFT_OUT = {"qwen3_5_text": {"in_proj_a", "in_proj_b"}}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_an_adapter_on_the_usual_modules_survives_being_merged_and_saved(
    tmp_path: Path, family: str, dtype: str
) -> None:
    family_checkpoint(tmp_path / "base", family)
    keys = (f"model.path={tmp_path / 'base'}", f"model.dtype={dtype}")
    config = composed("model=custom", "model/lora=on", *keys).model
    check_lora(config)
    base, wanted = load_model(config), lora_config(config)
    assert wanted is not None and base.dtype == getattr(torch, dtype)
    linear = {name.rpartition(".")[2] for name, one in base.named_modules() if isinstance(one, nn.Linear)}
    assert set(wanted.target_modules or ()) == linear - {"lm_head"} - LEFT_OUT.get(family, set())
    before = logits(base)
    wanted.init_lora_weights = False
    torch.manual_seed(1)
    adapted = get_peft_model(base, wanted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.1)
    said = logits(adapted)
    assert (said - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_model(composed("model=custom", f"model.path={tmp_path / 'adapter'}", f"model.dtype={dtype}").model)
    size = 1e-3 if dtype == "float32" else 0.1
    torch.testing.assert_close(logits(merged), said, atol=size, rtol=size)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=getattr(torch, dtype))
    torch.testing.assert_close(logits(again), logits(merged), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_without_a_padding_token_pads_with_its_end_token(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    family_checkpoint(tmp_path, family)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    config = composed("model=custom", f"model.path={tmp_path}").model
    assert load_model(config).config.pad_token_id is None
    chat = load_chat(config, Needs(tools=True, system=True))
    assert chat.tokenizer.pad_token == chat.tokenizer.eos_token == "<|im_end|>"


def test_every_preset_names_a_family_whose_targets_are_known() -> None:
    known = {"tiny", "qwen2.5", "qwen3", "qwen3.5", "phi3", "phi4", "llama3", "smollm2", "gemma3", "lfm2", "other"}
    families = {name: read_option(file)["family"] for name, file in option_files("model").items()}
    assert set(families.values()) == known
    assert families["lfm2-350m"] == "lfm2" and families["qwen3.5-0.8b"] == "qwen3.5"
