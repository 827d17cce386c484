"""Loading a policy: hub id, local directory or the packaged tiny checkpoint, with LoRA and a usable chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
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

from agentrl.chat.format import THINKING_ARGUMENTS, ChatFormat
from agentrl.config.schema import Model
from agentrl.core.bench import Task
from agentrl.core.errors import UserError, first_line
from agentrl.models.adapters import adapter_base, merge_adapter
from agentrl.models.places import checkpoint_path
from agentrl.models.vocabulary import fit_vocabulary


def load_model(config: Model, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """The causal language model in `config.dtype`; an adapter gives its base with it merged in.

    `quantization` is for a model that is not trained.

    Raises:
        UserError: unreachable, incomplete, or weights that do not belong to the architecture its config names.
    """
    if (base := adapter_base(config)) is not None:
        return merge_adapter(load_model(base, quantization), config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint_path(config.path),
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
    tokenizer = _tokenizer(config)
    variants = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    if variants is not None:
        tokenizer.chat_template = _choose_template(config, variants, needs)
    fit_vocabulary(config, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if needs.system and not carries_system_message(tokenizer):
        raise UserError(
            f"model.path={config.path}: its chat template has no system role, so the rules of this bench would never "
            "reach the model; choose a model whose template carries system messages, or edit that of its tokenizer"
        )
    template = _tool_template(config, tokenizer) if needs.tools else None
    reasoning = "content" if config.thinking == "off" else config.reasoning
    return ChatFormat(tokenizer, template, reasoning, variants, thinking_arguments(config, tokenizer, template))


def thinking_arguments(config: Model, tokenizer: PreTrainedTokenizerFast, template: str | None) -> dict[str, bool]:
    """What tells the chat template to follow `model.thinking`.

    Raises:
        UserError: the template takes no such argument, or renders the same prompt whatever its value.
    """
    if config.thinking is None:
        return {}

    def prompt(**arguments: bool) -> str:
        messages = [{"role": "user", "content": "Hello"}]
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False, **arguments
            )
        )

    for name in THINKING_ARGUMENTS:
        if prompt(**{name: True}) != prompt(**{name: False}):
            return {name: config.thinking == "on"}
    raise UserError(
        f"model.thinking={config.thinking}: the chat template of {config.path} heeds neither "
        f"{' nor '.join(THINKING_ARGUMENTS)}, so it changes nothing; set model.thinking=null, or take a model whose "
        "template has the switch (Qwen3, GLM 4.5, Gemma 4, ...)"
    )


def _tokenizer(config: Model) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights; an adapter that has none takes its base's."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint_path(config.path), revision=config.revision, padding_side="left"
        )
    except (OSError, ValueError, KeyError) as error:
        if (base := adapter_base(config)) is not None:
            return _tokenizer(base)
        raise UserError(f"model.path={config.path}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.chat_template is None:
        raise UserError(f"model.path={config.path}: needs a fast tokenizer with a chat template (an instruct model)")
    return tokenizer


def _choose_template(config: Model, variants: dict[str, str], needs: Needs) -> str:
    """Of the templates that a tokenizer carries by name: `tool_use` for tasks with tools, `default` elsewhere."""
    for name in ("tool_use", "default") if needs.tools else ("default",):
        if name in variants:
            return variants[name]
    if len(variants) == 1:
        return next(iter(variants.values()))
    raise UserError(
        f"model.path={config.path}: none of its chat templates is named default ({', '.join(variants)}); name the one "
        "to use so in its tokenizer"
    )


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
