"""A real `vllm serve` on a CPU, from an environment of its own.

`make vllm` makes .vllm/; AGENTRL_VLLM_PYTHON names another Python that has vLLM. Without either the test skips.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import ROOT
from tests.support.servers import free_port, serving

SETTINGS = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "TORCHDYNAMO_DISABLE": "1",  # torch would compile at the first request, for 20 s
}
# The command `vllm serve` looks for a distribution called vllm.
ENTRY = ("-m", "vllm.entrypoints.openai.api_server")
ON_A_CPU = ("--enforce-eager",)


@cache
def vllm_python() -> str:
    """The Python that has vLLM; skips the test where there is none."""
    python = os.environ.get("AGENTRL_VLLM_PYTHON", str(ROOT / ".vllm" / "bin" / "python"))
    found = shutil.which(python)
    if found is None:
        pytest.skip(f"{python} does not exist: run make vllm, or name a Python that has vLLM with AGENTRL_VLLM_PYTHON")
    tried = subprocess.run([found, "-c", "import vllm"], capture_output=True, text=True, cwd="/")
    if tried.returncode:
        pytest.skip(f"{python} cannot import vllm: {(tried.stderr.strip() or 'it died').splitlines()[-1]}")
    return found


class Vllm:
    """A running server."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url  # without /v1
        self.directory = directory  # its working directory, with server.log in it

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def vllm_serving(checkpoint: Path, directory: Path, *arguments: str, port: int | None = None) -> Iterator[Vllm]:
    """Serve a checkpoint in float32 as `served`."""
    command = [vllm_python(), *ENTRY, "--model", str(checkpoint), *ON_A_CPU]
    command += ["--served-model-name", "served", "--dtype", "float32"]
    directory.mkdir(parents=True, exist_ok=True)
    with serving([*command, *arguments], directory, 300, port or free_port(), **SETTINGS) as url:
        yield Vllm(url.removesuffix("/v1"), directory)


def untied_copy(name: str, folder: Path) -> Path:
    """The packaged model `name` with an output layer of its own: vLLM on a CPU does not renew one that is shared."""
    shutil.copytree(str(files("agentrl.tiny") / name), folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_network(folder, tie_word_embeddings=False)
    return folder


def fresh_model(name: str, folder: Path, **changes: Any) -> Path:
    """A network with random weights, in the packaged model's place; `changes` are to its sizes."""
    shutil.copytree(str(files("agentrl.tiny") / name), folder)
    edit_network(folder, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def edit_network(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
