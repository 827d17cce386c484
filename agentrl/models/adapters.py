"""LoRA adapters: make PEFT's configuration, check it against the model, put a trained adapter on its base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from agentrl.config.checks import require_base
from agentrl.config.meanings import suggest
from agentrl.config.schema import Model
from agentrl.config.target import FAMILIES
from agentrl.core.errors import UserError, first_line
from agentrl.models.places import ADAPTER, checkpoint_path

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # Phi fuses its projections
LORA_TARGETS = {
    "phi3": PHI_TARGETS,
    "phi4": PHI_TARGETS,
    "lfm2": ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"],  # in_proj: of its convolutions
    "qwen3.5": [*LLAMA_TARGETS, "in_proj_qkv", "in_proj_z", "out_proj"],  # the latter three: of its linear attention
}  # every other family here has Llama's seven projections
NOTEWORTHY = 0.1  # share of an adapter's change that a merge may lose without a warning


def lora_config(model: Model) -> LoraConfig | None:
    """Return PEFT's configuration, or None if `model.lora.enabled` is false. It names the revision of the base."""
    lora = model.lora
    if not lora.enabled:
        return None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or LORA_TARGETS.get(_family(model), LLAMA_TARGETS),
        task_type="CAUSAL_LM",
        revision=model.revision,
    )


def _family(model: Model) -> str:
    """Return the family that the user names, or that the checkpoint's configuration tells."""
    if model.family != "other" or (network := network_config(model)) is None:
        return model.family
    return FAMILIES.get(network.model_type, model.family)


def check_lora(model: Model) -> None:
    """Check, before the weights are read, that the model has the modules that get an adapter.

    Raises:
        UserError: a name is misspelt, names a module without weights of its own, or names the output layer; or the
            model ties its embeddings to the output layer and one of the two is named.
    """
    wanted = lora_config(model)
    config = network_config(model)
    if wanted is None or config is None:
        return
    with torch.device("meta"):
        try:
            network = AutoModelForCausalLM.from_config(config)
        except (ValueError, KeyError):  # an unknown architecture: loading the weights reports it
            return
        _check_names(model, network)
        try:
            get_peft_model(network, wanted)
        except ValueError as error:  # PEFT has no adapter for such a module
            raise _refusal(model, first_line(error), network) from error


def _check_names(model: Model, network: PreTrainedModel) -> None:
    """Check each name on its own, because PEFT ignores a misspelt name as long as another name fits."""
    targets = model.lora.target_modules
    names = [name for name, _ in network.named_modules() if name]
    ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
    for target in targets if isinstance(targets, list) else []:
        found = [name for name in names if name == target or name.endswith(f".{target}")]
        if not found:
            raise _refusal(model, f"this model has no module {target}{suggest(target, list(ends))}", network)
        modules = [network.get_submodule(name) for name in found]
        if any(module is network.get_output_embeddings() for module in modules):
            raise _refusal(
                model,
                f"{target} is the output layer. The losses read its weights without an adapter, so it would "
                "not be trained; remove it from the list",
                network,
            )
        tied = getattr(network.config.get_text_config(), "tie_word_embeddings", False)
        if tied and any(module is network.get_input_embeddings() for module in modules):
            raise _refusal(
                model,
                f"{target} and the output layer of this model share their weights, and an adapter would change only "
                "one of them; remove it from the list",
                network,
            )


def _refusal(model: Model, reason: str, network: PreTrainedModel) -> UserError:
    output = network.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]: None
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }
    targets = model.lora.target_modules
    shown = "null" if targets is None else f"[{','.join(targets)}]" if isinstance(targets, list) else targets
    reason = reason if len(reason) < 300 else reason[:300] + "..."
    return UserError(
        f"model.lora.target_modules={shown}: {reason}. all-linear trains every linear module ({', '.join(linear)})"
    )


def adapter_base(config: Model) -> Model | None:
    """Return the model that the adapter at `config.path` was trained on; None if the path holds full weights.

    Raises:
        UserError: the adapter's configuration is damaged, names no base, or names a directory that is gone.
    """
    path = checkpoint_path(config.path)
    local = Path(path).is_dir()
    try:
        found = find_adapter_config_file(path, revision=None if local else config.revision)
        saved: Any = None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if not local:  # no such repository, or no network: loading the weights reports it
            return None
        raise UserError(f"model.path={config.path}: {ADAPTER} is damaged: {first_line(error)}") from error
    if saved is None:
        return None
    base = saved.get("base_model_name_or_path") if isinstance(saved, dict) else None
    if not base or (local and Path(base).expanduser().absolute() == Path(path)):
        raise UserError(
            f"model.path={config.path}: {ADAPTER} names no base checkpoint (base_model_name_or_path={base}); correct "
            "that file"
        )
    if local:
        require_base(path)
    # Adapters of other tools may have no revision; model.revision then names the revision of the base.
    revision = saved.get("revision") or (config.revision if local else None)
    return config.model_copy(update={"path": base, "revision": revision})


def network_config(model: Model) -> PreTrainedConfig | None:
    """Return the network's configuration (the base's configuration for an adapter), or None if it cannot be read."""
    base: Model | None = model
    while base is not None:
        model, base = base, adapter_base(base)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint_path(model.path), revision=model.revision)
    except (OSError, ValueError, KeyError):  # loading the weights reports what is wrong
        return None
    return config


def merge_adapter(base: PreTrainedModel, config: Model) -> PreTrainedModel:
    """Return `base` with the adapter at `config.path` merged into its weights. The model takes the adapter's name.

    Weights of 16 bits round the sum. If that loses more than a tenth of what the adapter changes, a warning says so.
    """
    with _explain_misfit(base, config):
        adapted = put_adapter(base, config)
        lost = rounding_loss(adapted)
        _untie(adapted.get_base_model())
        merged: PreTrainedModel = adapted.merge_and_unload()
    if lost > NOTEWORTHY:
        warnings.warn(
            f"{config.path}: merging this adapter into weights of {config.dtype} rounds them, and the rounding error "
            f"is {lost:.0%} of what the adapter changes; only float32 weights keep all of it (model.dtype=float32; for "
            "agentrl merge, dtype=float32)",
            stacklevel=2,
        )
    merged.requires_grad_(True)  # PEFT has frozen the base, and full training may continue from here
    merged.name_or_path = checkpoint_path(config.path)  # an adapter trained on this model names it as its base
    return merged


def put_adapter(base: PreTrainedModel, config: Model) -> PeftModel:
    """Return `base` with the adapter at `config.path` beside its weights, as the run that trained it had it.

    Raises:
        UserError: the adapter does not fit the base.
    """
    path = checkpoint_path(config.path)
    with _explain_misfit(base, config):
        return PeftModel.from_pretrained(base, path, revision=None if Path(path).is_dir() else config.revision)


@contextmanager
def _explain_misfit(base: PreTrainedModel, config: Model) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
        raise UserError(
            f"model.path={config.path}: the adapter does not fit {base.name_or_path}: {first_line(error)}"
        ) from error


@torch.no_grad()
def rounding_loss(adapted: PeftModel) -> float:
    """Return |error| / |change| of a merge: norms over all linear layers with an adapter. 0 for float32 weights.

    The change is what the adapter adds to the weights; the error is what rounding the sum to their dtype takes away.
    """
    error = change = 0.0
    for layer in adapted.modules():
        if not isinstance(layer, Linear) or layer.get_base_layer().weight.dtype == torch.float32:
            continue
        weight = layer.get_base_layer().weight
        for name in layer.lora_A:
            added = layer.get_delta_weight(name).float()
            whole = weight.float() + added
            error += float((whole.to(weight.dtype).float() - whole).square().sum())
            change += float(added.square().sum())
    return (error / change) ** 0.5 if change > 0 else 0.0


def _untie(model: PreTrainedModel) -> None:
    """Give the embeddings and the output layer separate weights if one of them has an adapter.

    Otherwise the merged adapter of one layer would change the other layer too.
    """
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    bare = [_without_adapter(layer) for layer in layers]
    touched = any(layer is not plain for layer, plain in zip(layers, bare, strict=True))
    if layers[1] is not None and touched and bare[0].weight is bare[1].weight:
        bare[1].weight = nn.Parameter(bare[1].weight.detach().clone(), requires_grad=bare[1].weight.requires_grad)
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def _without_adapter(layer: Any) -> Any:
    for inner in ("base_layer", "original_module"):
        if layer is not None and hasattr(layer, inner):
            return _without_adapter(getattr(layer, inner))
    return layer
