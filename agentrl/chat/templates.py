"""Gives a tokenizer the chat template of `model.chat_template`, and the parser of its tool calls."""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils as trl

from agentrl.chat.format import ChatFormat
from agentrl.chat.turn_spans import PROBE, USER, calls_message
from agentrl.config.templates import CHATML_TOOLS, OFFER, TRAINING, trl_templates
from agentrl.core.errors import UserError, first_line

MARK = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_\w+>")  # what special tokens look like in rendered text


@dataclass(frozen=True)
class Marks:
    """What a family of models writes around turns, in place of ChatML's marks."""

    system: str
    user: str
    assistant: str
    end: str
    beginning: bool = False  # whether a conversation begins with the tokenizer's token for it


FAMILIES = (
    Marks("<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>"),
    Marks("<start_of_turn>system", "<start_of_turn>user", "<start_of_turn>model", "<end_of_turn>", True),  # Gemma
    Marks("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),  # Phi
)


def use_template(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Replace template, parser of tool calls and end token of `tokenizer`. `name` is a value of `model.chat_template`.

    Raises:
        UserError: the template has an error, writes marks that are no tokens of the model, or does not end turns.
    """
    own, tokenizer.response_template = tokenizer.response_template, None
    if name == CHATML_TOOLS:
        tokenizer.chat_template, tokenizer.response_template = chatml_tools(tokenizer)
    elif (shipped := trl_templates()).get(name) is not None:
        tokenizer.chat_template = shipped[name].read_text(encoding="utf-8")
        with suppress(ValueError):  # TRL has no parser: a template without tools
            trl.add_response_schema(tokenizer)
        if (training := shipped.get(name + TRAINING)) is not None:
            tokenizer.chat_template = training.read_text(encoding="utf-8")
    else:
        tokenizer.chat_template = Path(name).expanduser().read_text(encoding="utf-8")
    _check_marks(name, tokenizer)
    if tokenizer.response_template is None:
        tokenizer.response_template = _find_parser(tokenizer, own)
    end = ChatFormat(tokenizer, None, "content").turns.answer_end
    if len(tokenizer(end, add_special_tokens=False)["input_ids"]) != 1:
        raise UserError(f"model.chat_template={name}: it ends turns with {end!r}, which is not one token; {OFFER}")
    tokenizer.eos_token = end


def chatml_tools(tokenizer: PreTrainedTokenizerFast) -> tuple[str, dict[str, Any]]:
    """Return our own template and its parser, with the marks that the model knows.

    Raises:
        UserError: the model knows neither ChatML's marks nor those of another family here.
    """
    known = tokenizer.get_vocab()
    marks = next((one for one in FAMILIES if {*MARK.findall(one.user), one.end} <= known.keys()), None)
    if marks is None:
        raise UserError(
            f"model.chat_template={CHATML_TOOLS}: {tokenizer.name_or_path} has the marks neither of ChatML nor of "
            "Gemma nor of Phi among its tokens; give a template file with marks that it knows"
        )
    template = (files("agentrl.chat") / f"{CHATML_TOOLS}.jinja").read_text(encoding="utf-8")
    chatml = FAMILIES[0]
    for one in ("system", "user", "assistant", "end"):
        template = template.replace(getattr(chatml, one), getattr(marks, one))
    if marks.beginning:
        template = "{{- bos_token }}" + template
    parser = copy.deepcopy(trl.qwen3_template)
    parser["start_anchor"] = f"{marks.assistant}\n"
    parser["fields"]["content"]["close_pattern"] = rf"{re.escape(marks.end)}\s*"
    return template, parser


def _find_parser(tokenizer: PreTrainedTokenizerFast, own: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the parser that reads the call which the template writes: the tokenizer's own, or one of TRL's."""
    calls = calls_message(PROBE[:1])
    tools = [{"type": "function", "function": {"name": call["name"], "parameters": TOOL}} for call in PROBE[:1]]
    trial = copy.copy(tokenizer)
    for parser in filter(None, (own, *_trl_parsers())):
        trial.response_template = parser
        try:
            prompt, whole = (
                trial.apply_chat_template(messages, tools=tools, add_generation_prompt=asked, tokenize=False)
                for messages, asked in (([USER], True), ([USER, calls], False))
            )
            before, turn = (
                trial(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole.removeprefix(prompt))
            )
            said = trl.parse_response(trial, turn, prefix=before, tools=tools)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError):  # no tools, or it reads other formats
            continue
        if said.get("tool_calls") == calls["tool_calls"]:
            return parser
    return None


TOOL = {"type": "object", "properties": {"key": {"type": "string"}}}


def _trl_parsers() -> list[dict[str, Any]]:
    named = (value for key, value in sorted(vars(trl).items()) if key.endswith("_template"))
    return [value for value in named if isinstance(value, dict) and "tool_calls" in value.get("fields", {})]


def _check_marks(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a template that leaves out messages, or whose marks are no tokens of the model.

    The rows of such marks in the embedding would be new, and mean nothing.
    """
    messages = [USER, {"role": "assistant", "content": "Hello"}, USER]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        raise UserError(
            f"model.chat_template={name}: it refuses a conversation: {first_line(error)}; correct the template"
        ) from error
    if text.count("Hello") < len(messages):
        raise UserError(
            f"model.chat_template={name}: it leaves out what the user or the assistant says; correct the template"
        )
    known = tokenizer.get_vocab()
    if strange := [mark for mark in dict.fromkeys(MARK.findall(text)) if mark not in known]:
        raise UserError(
            f"model.chat_template={name}: it writes {', '.join(strange)}, no tokens of {tokenizer.name_or_path}, so "
            f"the model would not know where a turn begins and ends; choose a template with its own marks: {OFFER}"
        )
