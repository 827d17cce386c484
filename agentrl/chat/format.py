"""How one model writes a conversation: its tokenizer, its chat template, and where reasoning goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template

from agentrl.chat.turn_spans import TurnReader
from agentrl.core.errors import UserError

THINKING_ARGUMENTS = ("enable_thinking", "thinking")  # what families call the switch in their chat templates


@dataclass(frozen=True)
class ChatFormat:
    """How one model writes a conversation: its tokenizer, the template in use, and where reasoning goes."""

    tokenizer: PreTrainedTokenizerFast
    template: str | None  # None: the tokenizer's own
    reasoning: str  # "content" or "think", see schema.Model.reasoning
    variants: dict[str, str] | None = None  # all named templates of the checkpoint, where it has several
    arguments: dict[str, Any] = field(default_factory=dict)  # the template's own, e.g. {"enable_thinking": False}

    def text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generation_prompt: bool) -> str:
        """The conversation as the template renders it."""
        return self._render(messages, tools, generation_prompt, self.template)

    @cached_property
    def turns(self) -> TurnReader:
        """Finds the words and calls of assistant turns."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return TurnReader(lambda m, asked: self.training_text(m, [], asked), self.tokenizer.name_or_path, added)

    def training_text(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generation_prompt: bool
    ) -> str:
        """As `text`, by TRL's template for training where it has one: some models' own leave out the end of a turn."""
        return self._render(messages, tools, generation_prompt, self._training_template)

    @cached_property
    def _training_template(self) -> str | None:
        if self.template is not None:
            return self.template
        try:
            found: str | None = get_training_chat_template(self.tokenizer)
        except ValueError:  # none that TRL knows: the tokenizer's own then
            return None
        return found

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generation_prompt: bool, template: str | None
    ) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self.arguments,
            )
        except (TemplateError, TypeError) as error:  # a template's own ways to say no
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} refuses a conversation: {error}"
            ) from error

    def prompt_ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """Token ids of a prompt that ends where the assistant starts to write."""
        return self.ids(self.text(messages, tools, generation_prompt=True))

    def ids(self, text: str) -> list[int]:
        """Token ids of already rendered text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def save(self, folder: Path) -> None:
        """Write the tokenizer with all templates that it came with."""
        used = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.variants or used
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = used
