"""The command of the server that a run wants, and which running servers are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.vllm import positions_of, serve_command
from agentrl.core.errors import UserError
from agentrl.endpoint.vllm_settings import check_settings, serves_untied, way_of_weights
from tests.support.helpers import composed
from tests.support.vllm_stand_in import SETTINGS

GPU = ("hardware=gpu", "vllm.mode=server", "model=qwen3-4b")


def changed(**changes: Any) -> dict[str, Any]:
    """The settings of a good server, with `section__name` or a whole section otherwise."""
    settings: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    settings["model_config"]["model"] = "Qwen/Qwen3-4B"
    settings["model_config"]["dtype"] = "torch.bfloat16"
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            settings[section][key] = value
        else:
            settings[section] = value
    return settings


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (
            (),
            "VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --dtype bfloat16 --max-model-len 30000 --logprobs-mode "
            'processed_logprobs --weight-transfer-config \'{"backend": "nccl"}\'',
        ),
        (
            ("hardware=cpu", "vllm.context=9000", "model.revision=v1"),
            "VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --revision v1 --dtype float32 --max-model-len 9000 "
            "--logprobs-mode processed_logprobs",
        ),
        (
            ("model/lora=on", "model.lora.r=24"),
            "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve Qwen/Qwen3-4B --dtype bfloat16 "
            "--max-model-len 30000 --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 32",
        ),
        (
            ("vllm.sleep=true",),
            "VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --dtype bfloat16 --max-model-len 30000 --logprobs-mode "
            "processed_logprobs --enable-sleep-mode",
        ),
        (
            ("vllm.tensor_parallel=2", "vllm.memory=0.8", "vllm.kv_cache=fp8", "vllm.sleep=true", "model/lora=on"),
            "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve Qwen/Qwen3-4B --dtype bfloat16 "
            "--max-model-len 30000 --logprobs-mode processed_logprobs --tensor-parallel-size 2 "
            "--gpu-memory-utilization 0.8 --kv-cache-dtype fp8 --enable-sleep-mode --enable-lora --max-lora-rank 16",
        ),
    ],
)
def test_the_command_says_what_the_keys_say(overrides: tuple[str, ...], command: str) -> None:
    assert serve_command(composed(*GPU, *overrides)) == command


def test_a_context_is_no_longer_than_the_model_takes() -> None:
    assert "--max-model-len 16384 " in serve_command(composed("vllm.mode=server", "rollout.max_prompt_tokens=99999"))


def test_a_server_that_fits() -> None:
    check_settings(changed(), 30000, composed(*GPU))
    check_settings(changed(model_config__model="/models/Qwen3-4B"), 99999, composed(*GPU))  # of another machine
    kept = changed(cache_config__cache_dtype="fp8_e4m3")
    check_settings(kept, 30000, composed(*GPU, "vllm.kv_cache=fp8"))


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"model_config__logprobs_mode": "raw_logprobs"}, (), "gives log-probs as raw_logprobs, before temperature"),
        ({"cache_config__enable_prefix_caching": False}, (), "keeps no prefix cache"),
        ({}, ("vllm.sleep=true",), "cannot sleep, and vllm.sleep=true"),
        ({"lora_config": {"max_lora_rank": 8}}, ("model/lora=on",), "adapters of rank 8 at most, and model.lora.r=16"),
        ({"model_config__model": "Qwen/Qwen3-8B"}, (), "serves another model (Qwen/Qwen3-8B)"),
        ({}, ("vllm.context=40000",), "takes contexts of 30000 tokens, and this run needs 40000 (vllm.context)"),
        ({"model_config__dtype": "torch.float16"}, (), "computes in float16, the trainer in bfloat16"),
        ({"parallel_config__tensor_parallel_size": 2}, (), "is split over 2 GPUs, and vllm.tensor_parallel=1"),
        ({}, ("vllm.kv_cache=fp8",), "keeps its cache as auto, and vllm.kv_cache=fp8"),
        ({"cache_config__cache_dtype": "fp8"}, (), "keeps its cache as fp8, and vllm.kv_cache=auto"),
        ({}, ("vllm.memory=0.5",), "fills 0.9 of the GPU's memory, and vllm.memory=0.5"),
    ],
)
def test_a_server_that_was_started_otherwise(changes: Any, overrides: tuple[str, ...], words: str) -> None:
    config = composed(*GPU, *overrides)
    with pytest.raises(UserError) as error:
        check_settings(changed(**changes), 30000, config)
    assert words in str(error.value) and f"start it with: {serve_command(config)}" in str(error.value)
    assert str(error.value).startswith("vllm.url=http://localhost:8000: that server ")


def checkpoint(folder: Path, **network: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(network))
    return str(folder)


def test_a_checkpoint_on_this_disk_is_compared_by_its_sizes(tmp_path: Path) -> None:
    mine = checkpoint(tmp_path / "mine", hidden_size=64, vocab_size=9, tie_word_embeddings=True)
    twin = checkpoint(tmp_path / "twin", hidden_size=64, vocab_size=9, tie_word_embeddings=False)
    wide = checkpoint(tmp_path / "wide", hidden_size=128, vocab_size=9)
    config = composed(*GPU, f"model.path={mine}")
    check_settings(changed(model_config__model=twin), 30000, config)
    with pytest.raises(UserError, match=r"serves another model \(.*wide, hidden_size 128\)"):
        check_settings(changed(model_config__model=wide), 30000, config)


def test_a_tied_output_layer_on_a_cpu_is_refused_unless_something_else_is_sent(tmp_path: Path) -> None:
    mine = checkpoint(tmp_path / "mine", hidden_size=64, tie_word_embeddings=True)
    untied = checkpoint(tmp_path / "untied", hidden_size=64, tie_word_embeddings=False)
    how = {"device_config__device": "cpu", "model_config__dtype": "torch.float32"}
    run = ("vllm.mode=server", f"model.path={mine}", "vllm.context=30000")
    with pytest.raises(UserError, match=r"keeps the old output layer .* serve an untied copy"):
        check_settings(changed(**how, model_config__model=mine), 30000, composed(*run))
    assert serves_untied(changed(model_config__model=untied)) and not serves_untied(changed(model_config__model=mine))
    check_settings(changed(**how, model_config__model=untied), 30000, composed(*run))
    adapters = changed(**how, model_config__model=mine, lora_config={"max_lora_rank": 16})
    check_settings(adapters, 30000, composed(*run, "model/lora=on"))


@pytest.mark.parametrize(
    ("transfer", "lora", "overrides", "way"),
    [
        ("nccl", None, (), "nccl"),
        ("nccl", None, ("model/lora=on",), "nccl"),  # merged
        ("nccl", {"max_lora_rank": 16}, ("model/lora=on",), "adapter"),
        ("nccl", {"max_lora_rank": 16}, (), "nccl"),
        ("nccl", None, ("hardware=cpu",), "file"),
        (None, None, (), "file"),
        ("ipc", None, (), "file"),
        ("nccl", None, ("vllm.sleep=true",), "file"),  # both share a GPU, which NCCL refuses
    ],
)
def test_the_way_that_weights_take(
    transfer: str | None, lora: Any, overrides: tuple[str, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    settings = changed(lora_config=lora, weight_transfer_config=transfer and {"backend": transfer})
    assert way_of_weights(settings, composed(*GPU, *overrides)) == way


def test_weights_for_a_server_with_a_key_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")  # TRL's client of NCCL would not send it
    assert way_of_weights(changed(weight_transfer_config={"backend": "nccl"}), composed(*GPU)) == "file"


def test_the_context_of_a_model_with_a_text_part_is_that_of_the_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3", "text_config": {"max_position_embeddings": 900}}')
    assert positions_of(str(tmp_path)) == 900 and positions_of(str(tmp_path / "nothing")) is None
