"""How the weights of the policy reach a vLLM server. TRL walks them, sharded or merged, under the names vLLM knows.

Over NCCL its own `VLLMGeneration` does everything. Elsewhere a file carries them, which the server reads from the same
file system.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import broadcast_object_list
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model_state_dict
from trl.generation.vllm_generation import VLLMGeneration

from agentrl.core.errors import UserError
from agentrl.endpoint.vllm import VllmServer, VllmTrouble


class Weights(Protocol):
    """Brings the weights that the policy has now to the server; every process calls it."""

    def sync_weights(self) -> str:
        """Returns the name under which the server has them. Raises UserError where it does not take them."""
        ...


class NcclWeights:
    """Tensor by tensor, from GPU to GPU. Needs the package vllm beside the trainer."""

    def __init__(self, server: VllmServer, name: str, model: Any, accelerator: Any, tokenizer: Any) -> None:
        self._name = name
        self._backend = VLLMGeneration(
            model, accelerator, tokenizer, mode="server", server_base_url=server.url, server_timeout=30.0
        )

    def sync_weights(self) -> str:
        """See `Weights`."""
        self._backend.sync_weights()
        return self._name


class FileWeights(VLLMGeneration):
    """Through safetensors in `folder`. `untie`: the server has an output layer of its own where the policy has none."""

    def __init__(
        self, server: VllmServer, name: str, model: Any, accelerator: Any, tokenizer: Any, folder: Path, untie: bool
    ) -> None:
        self._server, self._name, self._folder, self._untie = server, name, folder, untie
        super().__init__(model, accelerator, tokenizer, mode="server")

    def _init_vllm(self) -> None:
        """TRL would look for the package vllm, and open NCCL."""

    def sync_weights(self) -> str:
        """See `Weights`."""
        main = self.accelerator.is_main_process
        tensors = {}
        for name, tensor in self._iter_named_params():  # a collective where the weights are sharded
            if main:
                tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if self._untie and main and "lm_head.weight" not in tensors:
            (embeddings,) = [tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
            tensors["lm_head.weight"] = embeddings.clone()

        def send(folder: Path) -> None:
            save_torch_state_dict(tensors, folder)
            self._server.reload(str(folder))

        _through(self._folder, send, self.accelerator, self._server)
        return self._name


class AdapterWeights:
    """As an adapter beside the base model, which the server keeps as it is. Each sync has a new name and cache."""

    def __init__(self, server: VllmServer, model: Callable[[], Any], accelerator: Any, folder: Path) -> None:
        self._server, self._model, self._accelerator, self._folder = server, model, accelerator, folder
        series = [uuid.uuid4().hex[:8]]  # a run that died may have left adapters behind
        broadcast_object_list(series)
        self._series, self._count = series[0], 0
        self._loaded: str | None = None

    def sync_weights(self) -> str:
        """See `Weights`."""
        wrapped = self._model()
        policy: PeftModel = self._accelerator.unwrap_model(wrapped)
        state = get_peft_model_state_dict(policy, self._accelerator.get_state_dict(wrapped))
        name = f"policy-{self._series}-{self._count}"

        def send(folder: Path) -> None:
            policy.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
            self._server.load_adapter(name, str(folder))
            if self._loaded is not None:
                self._server.unload_adapter(self._loaded)

        _through(self._folder, send, self._accelerator, self._server)
        self._loaded, self._count = name, self._count + 1
        return name


def _through(folder: Path, send: Callable[[Path], None], accelerator: Any, server: VllmServer) -> None:
    """Let the main process send the content of a folder that is gone afterwards; the others wait."""
    if accelerator.is_main_process:
        folder = folder.absolute() / uuid.uuid4().hex[:8]
        try:
            folder.mkdir(parents=True)
            send(folder)
        except VllmTrouble as trouble:
            raise UserError(
                f"vllm.url={server.url}: the server did not take the new weights ({trouble}); it must read {folder}, "
                "so let both see the same file system, and start it afresh"
            ) from trouble
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
