"""Renders conversations for one model, with its tokenizer and its chat template."""

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

THINKING_ARGUMENTS = ("enable_thinking", "thinking")  # names of the switch in the chat templates of model families


@dataclass(frozen=True)
class ChatFormat:
    """How one model writes a conversation: its tokenizer, the template in use, and the place of reasoning."""

    tokenizer: PreTrainedTokenizerFast
    template: str | None  # None takes the tokenizer's template
    reasoning: str  # "content" or "think", see schema.Model.reasoning
    variants: dict[str, str] | None = None  # all named templates of the checkpoint, if it has several
    arguments: dict[str, Any] = field(default_factory=dict)  # for the template, e.g. {"enable_thinking": False}

    def text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generation_prompt: bool) -> str:
        """Render the conversation with the template. Raises UserError if the template refuses it."""
        return self._render(messages, tools, generation_prompt, self.template)

    @cached_property
    def turns(self) -> TurnReader:
        """A reader that finds the words and calls of assistant turns."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return TurnReader(lambda m, asked: self.training_text(m, [], asked), self.tokenizer.name_or_path, added)

    def training_text(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generation_prompt: bool
    ) -> str:
        """Render as `text` does, with TRL's template for training if there is one.

        The templates of some models leave out the end of a turn.
        """
        return self._render(messages, tools, generation_prompt, self._training_template)

    @cached_property
    def _training_template(self) -> str | None:
        if self.template is not None:
            return self.template
        try:
            found: str | None = get_training_chat_template(self.tokenizer)
        except ValueError:  # TRL has no template for training
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
        except (TemplateError, TypeError) as error:  # templates refuse a conversation with one of these
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} refuses a conversation: {error}"
            ) from error

    def prompt_ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """Return the token ids of a prompt. It ends where the assistant starts to write."""
        return self.ids(self.text(messages, tools, generation_prompt=True))

    def ids(self, text: str) -> list[int]:
        """Return the token ids of rendered text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def save(self, folder: Path) -> None:
        """Write the tokenizer with all templates of its checkpoint."""
        used = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.variants or used
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = used
