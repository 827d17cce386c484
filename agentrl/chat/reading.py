"""Reads what a turn says and which calls it makes, as the official code of its bench does.

The official readers know the format of Qwen and Hermes: a JSON object in `<tool_call>` tags. The templates of Llama,
Gemma, gpt-oss, GLM and others write calls in other formats. Their turns are read by TRL's parser for the template.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import parse_response

from agentrl.chat.families import TAGS, family_reader
from agentrl.chat.transcripts import CLOSE, OPEN, Calls, parse_text
from agentrl.core.bench import Environment, Reading
from agentrl.core.text import is_too_deep, replace_surrogates
from agentrl.schemas.plain import plain_tool

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
THOUGHT_OPENING = 16  # last tokens of a prompt: enough for the opening of a think block and white space
KEPT = (OPEN, CLOSE, THINK_OPEN, THINK_CLOSE)  # kept in the text of a turn even if they are special tokens


def read_turn(text: str, environment: Environment | None = None, tools: bool = True) -> dict[str, Any]:
    """Read a text as an assistant message, by the rule of `environment`. Without tools the text is kept unchanged."""
    text = replace_surrogates(text)
    if not tools:
        return {"role": "assistant", "content": text}
    content, calls = environment.read(text) if isinstance(environment, Reading) else parse_text(text)
    return assistant_message(content, calls)


def assistant_message(content: str, calls: Calls) -> dict[str, Any]:
    """Make a chat message from content and calls."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return message


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with an open think block, as some templates write it."""
    return prompt.rstrip().endswith(THINK_OPEN)


class TokenReader:
    """Reads the turns that a policy sampled as tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._parsing = copy.copy(tokenizer)  # a copy keeps the response template, which trainers remove
        fields = (tokenizer.response_template or {}).get("fields", {})
        calls = fields.get("tool_calls", {})
        opening = str(calls.get("open") or calls.get("open_pattern"))
        self._official = not calls or (opening.startswith(OPEN) and calls.get("content") == "json")
        self._family = family_reader(tokenizer.response_template or {})
        added = tokenizer.added_tokens_decoder.items()
        self._dropped = {number for number, token in added if token.special and token.content not in KEPT}
        self._tags = {number for number, token in added if token.content in TAGS}
        self._dropped |= {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def text(self, ids: list[int]) -> str:
        """Decode the tokens, without end tokens and other special tokens."""
        spoken = [token for token in ids if token not in self._dropped]
        return str(self._tokenizer.decode(spoken, skip_special_tokens=False))

    def read(
        self, environment: Environment, ids: list[int], context: list[int], tools: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Read the message of a sampled turn. `context` are the token ids before it."""
        if self._official or not tools:
            text = self.text(ids)
            if not tools and opens_thought(self.text(context[-THOUGHT_OPENING:])):
                text = THINK_OPEN + text
            return read_turn(text, environment, bool(tools))
        if self._family is not None:
            spoken = [token for token in ids if token not in self._dropped or token in self._tags]
            found = self._family(str(self._tokenizer.decode(spoken, skip_special_tokens=False)))
            if found is not None and not is_too_deep([arguments for _, arguments in found[1]]):
                message: dict[str, Any] = replace_surrogates(assistant_message(*found))
                return message
        try:
            typed = [{**tool, "function": plain_tool(tool["function"])} for tool in tools]
            parsed: dict[str, Any] = replace_surrogates(parse_response(self._parsing, ids, prefix=context, tools=typed))
        except RecursionError:
            parsed = {}
        if not parsed or is_too_deep(parsed):  # JSON nested too deeply does not count as a call
            return {"role": "assistant", "content": replace_surrogates(self.text(ids))}
        return parsed
