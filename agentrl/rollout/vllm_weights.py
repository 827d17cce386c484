"""Sends the weights of the policy to a vLLM server, as a file of all weights or as an adapter.

Both ways write files, which the server reads from the same file system; `vllm_nccl.py` has the third way. TRL's
`VLLMGeneration` gathers sharded weights and uses vLLM's parameter names.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from agentrl.core.errors import UserError
from agentrl.core.stop import together
from agentrl.endpoint.vllm import VllmServer, VllmTrouble, server_failure


class Weights(Protocol):
    """Sends the current weights of the policy to the server. Every process must call it."""

    def sync_weights(self) -> str:
        """Send the weights and return the model name for requests. Raises UserError if the server refuses them."""
        ...


def keep_base(backend: VLLMGeneration) -> None:
    """Let `backend` send merged adapters and leave the base as it was, bit by bit.

    TRL adds the adapters to the base in place and subtracts them again. Both steps round, so the base would change with
    every batch.
    """
    if isinstance(backend.model, PeftModel):
        backend._iter_named_params = partial(_merged_params, backend, backend._iter_named_params)


def _merged_params(
    backend: VLLMGeneration, trl_params: Callable[[], Iterator[tuple[str, Tensor]]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield vLLM's name and the merged value of each parameter.

    vLLM takes many values before it sends them, so each value of a layer with adapters is a copy.
    """
    model: Any = backend.model
    if backend._dist.is_fsdp or backend._dist.is_zero3:  # TRL gathers and merges all of it at once
        layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        kept = [_copies(layer, "cpu") for layer in layers]
        yield from trl_params()
        for layer, copies in zip(layers, kept, strict=True):
            _restore(layer, copies)
        return
    for name, parameter in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        own = name.removeprefix("base_model.model.").replace(".base_layer", "")
        own = backend._fix_param_name_to_vllm(own, extra_prefixes=["modules_to_save.default."])
        holder = name.rpartition(".base_layer.")[0]
        yield own, _merged_value(model.get_submodule(holder), parameter) if holder else parameter.data


def _merged_value(layer: Any, parameter: Tensor) -> Tensor:
    """Return a parameter of the base of `layer` with the adapters merged. The base stays as it was, bit by bit."""
    copies = _copies(layer)
    layer.merge()
    try:
        return parameter.data.clone()
    finally:
        layer.unmerge()
        _restore(layer, copies)


def _copies(layer: Any, device: str | None = None) -> dict[str, Tensor]:
    """Return copies of the parameters of a layer's base (of a shard, if they are sharded)."""
    return {name: value.detach().to(device, copy=True) for name, value in layer.get_base_layer().named_parameters()}


@torch.no_grad()
def _restore(layer: Any, copies: dict[str, Tensor]) -> None:
    for name, value in layer.get_base_layer().named_parameters():
        value.copy_(copies[name])


class FileWeights(VLLMGeneration):
    """Sends the weights as safetensors files in `folder`.

    untie: the server has separate output weights, while the policy uses its input embeddings. A copy is sent as them.
    """

    def __init__(
        self, server: VllmServer, name: str, model: Any, accelerator: Any, tokenizer: Any, folder: Path, untie: bool
    ) -> None:
        self._server, self._name, self._folder, self._untie = server, name, folder, untie
        super().__init__(model, accelerator, tokenizer, mode="server")
        keep_base(self)

    def _init_vllm(self) -> None:
        """Do nothing. TRL's method would import the package vllm and open NCCL."""

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

        _send_folder(self._folder, send, self.accelerator, self._server)
        return self._name


class AdapterWeights:
    """Sends the policy's LoRA adapter; the server keeps its base model. Each sync loads it under a new name.

    A new name also starts a new prefix cache, so vLLM never reuses keys and values of older weights.
    """

    def __init__(self, server: VllmServer, model: Callable[[], Any], accelerator: Any, folder: Path) -> None:
        self._server, self._model, self._accelerator, self._folder = server, model, accelerator, folder
        series = [uuid.uuid4().hex[:8]]  # a random series: a run that died may have left adapters of the same number
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

        _send_folder(self._folder, send, self._accelerator, self._server)
        self._loaded, self._count = name, self._count + 1
        return name


def _send_folder(folder: Path, send: Callable[[Path], None], accelerator: Any, server: VllmServer) -> None:
    """Let the main process fill a temporary folder and send it; the other processes wait. Then the folder is removed.

    Raises CommonError if the server does not take the weights.
    """

    def fill_and_send() -> None:
        own = folder.absolute() / uuid.uuid4().hex[:8]
        try:
            own.mkdir(parents=True)
            send(own)
        except VllmTrouble as trouble:
            raise _untaken(server, own, trouble) from trouble
        finally:
            shutil.rmtree(own, ignore_errors=True)

    together(fill_and_send if accelerator.is_main_process else lambda: None)


def _untaken(server: VllmServer, folder: Path, trouble: VllmTrouble) -> UserError:
    """Make the error for weights that did not arrive: the server is gone, or it lives and cannot read them."""
    try:
        server.check_health()
    except VllmTrouble:
        return server_failure("vllm.url", server.url, trouble)
    return UserError(
        f"vllm.url={server.url}: the server did not take the new weights ({trouble}). It must be able to read "
        f"{folder}: let both see the same file system, and restart the server"
    )
