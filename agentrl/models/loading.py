"""Load a policy from a hub id, a local directory or the package, with its tokenizer and chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
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
from agentrl.chat.templates import use_template
from agentrl.config.schema import Model
from agentrl.config.templates import OFFER
from agentrl.core.bench import Task
from agentrl.core.errors import UserError, first_line
from agentrl.models.adapters import adapter_base, merge_adapter, put_adapter
from agentrl.models.complete import require_complete
from agentrl.models.places import checkpoint_path
from agentrl.models.quantization import quantization_of
from agentrl.models.vocabulary import fit_vocabulary


def load_policy(config: Model) -> PreTrainedModel | PeftModel:
    """Load a policy that is not trained here. An adapter computes as it did in the run that trained it.

    It stays beside weights of 16 bits or less, which would round the sum. Float32 weights take it in: that is faster.

    Raises:
        UserError: see `load_model`; or the base shall be quantized but is an adapter itself.
    """
    if config.dtype == "float32" and config.quantize is None:
        return load_model(config)
    if (base := adapter_base(config)) is None:
        return load_model(config)
    if config.quantize is not None and adapter_base(base) is not None:
        raise UserError(f"model.quantize={config.quantize}: its base is an adapter, too, and is not rounded; set null")
    return put_adapter(load_model(base), config)


def load_model(config: Model, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """Load the causal language model in `config.dtype`. For an adapter, load its base and merge the adapter into it.

    `quantization` is only for a model that is not trained.

    Raises:
        UserError: the checkpoint cannot be reached, is incomplete, or its weights do not fit the architecture that its
            config names.
    """
    if (base := adapter_base(config)) is not None:
        # An adapter is merged into the weights before rounding, as QLoRA is.
        return merge_adapter(load_model(base.model_copy(update={"quantize": None}), quantization), config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint_path(config.path),
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            quantization_config=quantization or quantization_of(config),
            output_loading_info=True,
        )
    except SafetensorError as error:
        damaged = f"its weights are damaged ({first_line(error)}); copy or download them again"
        raise UserError(f"model.path={config.path}: {damaged}") from error
    except (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"model.path={config.path} cannot be loaded: {first_line(error)}") from error
    require_complete(config.path, report)
    return model


@dataclass(frozen=True)
class Needs:
    """What the tasks of a run need from a chat template."""

    tools: bool
    system: bool  # whether some prompt has a system message


def needs_of(tasks: list[Task]) -> Needs:
    """Say whether any of `tasks` has tools or a system message."""
    return Needs(
        tools=any(task.tools for task in tasks),
        system=any(message["role"] == "system" for task in tasks for message in task.prompt),
    )


def load_chat(config: Model, needs: Needs) -> ChatFormat:
    """Load a tokenizer and a chat template that can render what `needs` names.

    A task without tools and without a system message works with any template.

    Raises:
        UserError: the tokenizer cannot be loaded, its template cannot render a system message or tool calls, or no
            parser for its tool calls is known.
    """
    tokenizer = _tokenizer(config)
    if config.chat_template is not None:
        use_template(config.chat_template, tokenizer)
    variants = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    if variants is not None:
        tokenizer.chat_template = _choose_template(config, variants, needs)
    elif config.chat_template is None:
        _end_turns_as_template(config, tokenizer)
    fit_vocabulary(config, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if needs.system and not carries_system_message(tokenizer):
        raise UserError(
            f"model.path={config.path}: its chat template has no system role, so the model would never see the rules "
            f"of this bench; {OFFER}, or choose a model whose template renders system messages"
        )
    template = _tool_template(config, tokenizer) if needs.tools else None
    reasoning = "content" if config.thinking == "off" else config.reasoning
    arguments = date_arguments(tokenizer, template) | thinking_arguments(config, tokenizer, template)
    return ChatFormat(tokenizer, template, reasoning, variants, arguments)


def _end_turns_as_template(config: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let turns end with the token that the chat template writes, if the model declares another end token only.

    Base models such as Qwen's have the template of the chat model, but still the end token of texts.
    """
    if tokenizer.chat_template is None:
        return
    try:
        end = ChatFormat(tokenizer, None, "content").turns.answer_end
    except (UserError, TemplateError):  # the template ends no turn
        return
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.eos_token_id and ids[0] not in _declared_ends(config):
        tokenizer.eos_token = end


def _declared_ends(config: Model) -> list[int]:
    """Return the ids of the end tokens that the model's generation_config.json declares; none if there is no file."""
    try:
        generation = GenerationConfig.from_pretrained(checkpoint_path(config.path), revision=config.revision)
    except (OSError, ValueError):
        return []
    declared = generation.eos_token_id
    return [] if declared is None else [declared] if isinstance(declared, int) else list(declared)


def date_arguments(tokenizer: PreTrainedTokenizerFast, template: str | None) -> dict[str, Any]:
    """Return a fixed date for a template that would write today's, as Llama's: equal runs shall have equal prompts.

    It is the date that Llama's templates write where they cannot ask for today's.
    """
    text = str(template or tokenizer.chat_template)
    return {"date_string": "26 Jul 2024"} if "strftime_now" in text and "date_string" in text else {}


def thinking_arguments(config: Model, tokenizer: PreTrainedTokenizerFast, template: str | None) -> dict[str, bool]:
    """Return the template argument that makes the chat template follow `model.thinking`.

    Raises:
        UserError: the template takes no such argument, or the argument does not change the prompt.
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
        f"model.thinking={config.thinking}: the chat template of {config.path} reads neither "
        f"{' nor '.join(THINKING_ARGUMENTS)}, so the key has no effect; set model.thinking=null, or use a model whose "
        "template has such a switch (Qwen3, GLM 4.5, Gemma 4, ...)"
    )


def _tokenizer(config: Model) -> PreTrainedTokenizerFast:
    """Load the tokenizer beside the weights. An adapter without a tokenizer uses the tokenizer of its base."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint_path(config.path), revision=config.revision, padding_side="left"
        )
    except (OSError, ValueError, KeyError) as error:
        if (base := adapter_base(config)) is not None:
            return _tokenizer(base)
        raise UserError(f"model.path={config.path}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"model.path={config.path}: no fast tokenizer (tokenizer.json); choose a model that has one")
    if tokenizer.chat_template is None and config.chat_template is None:
        raise UserError(f"model.path={config.path}: no chat template; choose an instruct model, or {OFFER}")
    return tokenizer


def _choose_template(config: Model, variants: dict[str, str], needs: Needs) -> str:
    """Choose one of the tokenizer's named templates: `tool_use` for tasks with tools, else `default`."""
    for name in ("tool_use", "default") if needs.tools else ("default",):
        if name in variants:
            return variants[name]
    if len(variants) == 1:
        return next(iter(variants.values()))
    raise UserError(
        f"model.path={config.path}: none of its chat templates is named default ({', '.join(variants)}); rename one "
        "of them to default in its tokenizer"
    )


def carries_system_message(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Check whether a system message appears in the rendered prompt. Some templates refuse it or drop it silently."""
    probe = "AgentrlSystemProbe"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "Hello"}]
    try:
        return probe in tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:  # this is how a template refuses a message
        return False


def _tool_template(config: Model, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the template for multi-turn tool use, None for the tokenizer's own; check that calls can be parsed."""
    if not supports_tool_calling(tokenizer):
        raise UserError(f"model.path={config.path}: its chat template cannot render tool calls; {OFFER}")
    if tokenizer.response_template is None:
        try:
            add_response_schema(tokenizer)
        except ValueError as error:
            raise UserError(
                f"model.path={config.path}: no parser for the tool calls of its chat template; {OFFER}, or set "
                "`response_template` in its tokenizer_config.json (see the model card)"
            ) from error
    if is_chat_template_prefix_preserving(tokenizer):
        return None
    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UserError(
            f"model.path={config.path}: its chat template rewrites earlier turns, so a multi-turn rollout cannot be "
            f"trained on token by token; {OFFER}"
        ) from error
    return template
