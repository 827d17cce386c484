"""Loading a policy: hub id, local directory or the packaged tiny checkpoint, with LoRA and a usable chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from agentrl.benches.base import Task
from agentrl.chat import ChatFormat
from agentrl.config.schema import Lora, Model
from agentrl.errors import UserError, first_line

BUILTIN = {"builtin:tiny": "tiny", "builtin:tiny_hif": "tiny_hif"}
ADAPTER = "adapter_config.json"
LORA_TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "phi4": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}  # Phi fuses its projections; every other family here has Llama's seven
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def checkpoint_path(path: str) -> str:
    """Hub id or directory to load from: `builtin:` names resolve to the package, local paths must exist."""
    if path in BUILTIN:
        return str(files("agentrl.models") / BUILTIN[path])
    if path.startswith("builtin:"):
        raise UserError(f"model.path={path}: no such built-in model; there is {', '.join(BUILTIN)}")
    local = Path(path).expanduser()
    if local.exists():
        if not any((local / name).is_file() for name in ("config.json", ADAPTER)):
            raise UserError(f"model.path={path}: no config.json there; point it at a checkpoint directory")
        return str(local)
    if path.startswith((".", "/", "~")):
        raise UserError(f"model.path={path}: no such directory; give an existing checkpoint or a hub id")
    return path


def load_model(config: Model, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """The causal language model in `config.dtype`; a directory that holds an adapter gives its base with it merged in.

    `quantization` is for a model that is not trained.

    Raises:
        UserError: unreachable, incomplete, or weights that do not belong to the architecture its config names.
    """
    path = checkpoint_path(config.path)
    if (Path(path) / ADAPTER).is_file():
        return _with_adapter(config, path, quantization)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            quantization_config=quantization,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"model.path={config.path} cannot be loaded: {first_line(error)}") from error
    # transformers fills absent weights with random numbers and says so in a log line only.
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted([*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])])
        raise UserError(
            f"model.path={config.path}: {len(lost)} weights are missing or of another shape (first: {lost[0]}); the "
            "checkpoint belongs to another architecture or is incomplete"
        )
    return model


def _with_adapter(config: Model, path: str, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
    try:
        base = PeftConfig.from_pretrained(path).base_model_name_or_path
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"model.path={config.path}: {ADAPTER} is damaged: {first_line(error)}") from error
    if not base or (Path(str(base)) / ADAPTER).is_file():
        raise UserError(
            f"model.path={config.path}: {ADAPTER} names no base checkpoint (base_model_name_or_path={base})"
        )
    model = load_model(replace(config, path=str(base), revision=None), quantization)
    try:
        merged = PeftModel.from_pretrained(model, path).merge_and_unload()
        return merged.requires_grad_(True)  # PEFT has frozen the base, and full training goes on from here
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
        raise UserError(f"model.path={config.path}: the adapter does not fit {base}: {first_line(error)}") from error


@dataclass(frozen=True)
class Needs:
    """What the tasks of a run ask of a chat template."""

    tools: bool
    system: bool  # a system message that the model must get to read


def needs_of(tasks: list[Task]) -> Needs:
    """What the prompts of `tasks` hold."""
    return Needs(
        tools=any(task.tools for task in tasks),
        system=any(message["role"] == "system" for task in tasks for message in task.prompt),
    )


def load_chat(config: Model, needs: Needs) -> ChatFormat:
    """Tokenizer and chat template, able to carry what `needs` names: any template will do for a single plain turn.

    Raises:
        UserError: no tokenizer there, or its template cannot carry a system message or tool calls, or no parser of
            its tool calls is known.
    """
    path = checkpoint_path(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path={config.path}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.chat_template is None:
        raise UserError(f"model.path={config.path}: needs a fast tokenizer with a chat template (an instruct model)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if needs.system and not carries_system_message(tokenizer):
        raise UserError(
            f"model.path={config.path}: its chat template has no system role, so the rules of this bench would never "
            "reach the model; choose a model whose template carries system messages, or edit that of its tokenizer"
        )
    template = _tool_template(config, tokenizer) if needs.tools else None
    return ChatFormat(tokenizer, template, config.reasoning)


def carries_system_message(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a system message stands in the rendered prompt: some templates refuse one, others drop it in silence."""
    probe = "AgentrlSystemProbe"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "Hello"}]
    try:
        return probe in tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:  # a template's own way to say no
        return False


def _tool_template(config: Model, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The template for multi-turn tool use, None for the tokenizer's own; sees to it that calls can be parsed."""
    if not supports_tool_calling(tokenizer):
        raise UserError(f"model.path={config.path}: its chat template cannot render tool calls; choose another model")
    if tokenizer.response_template is None:
        try:
            add_response_schema(tokenizer)
        except ValueError as error:
            raise UserError(
                f"model.path={config.path}: no parser for the tool calls of its chat template; set `response_template` "
                "in its tokenizer_config.json (see the model card), or use a Qwen2.5, Qwen3 or Llama 3 instruct model"
            ) from error
    if is_chat_template_prefix_preserving(tokenizer):
        return None
    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UserError(
            f"model.path={config.path}: its chat template rewrites earlier turns, so a multi-turn rollout cannot "
            "be trained on token by token; give its tokenizer a prefix-preserving template"
        ) from error
    return template


def lora_config(lora: Lora, family: str) -> LoraConfig | None:
    """PEFT's configuration, or None where adapters are off."""
    if not lora.enabled:
        return None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or LORA_TARGETS.get(family, LLAMA_TARGETS),
        task_type="CAUSAL_LM",
    )
