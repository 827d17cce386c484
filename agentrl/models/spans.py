"""Find which tokens of a prompt are the system's and which are the user's, as the chat template places them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.chat.format import ChatFormat
from agentrl.core.errors import UserError


@dataclass(frozen=True)
class PromptSpans:
    """The T token ids of a prompt, and two masks (T,): the tokens of the system and the tokens of the user."""

    ids: list[int]
    system: Tensor
    user: Tensor


def prompt_spans(chat: ChatFormat, messages: list[dict[str, str]], extent: str) -> PromptSpans:
    """Render `messages` and mark the tokens of each role. A token belongs to a span if any of its characters does.

    `extent` is 'content' (the text of a message) or 'message' (the text and the template's marks around it).

    Raises:
        UserError: the template rewrites the messages, so their place in the prompt is unknown.
    """
    text = chat.text(messages, [], generation_prompt=True)
    ranges = _messages(chat, messages, text) if extent == "message" else _contents(chat, messages, text)
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    masks = {role: torch.zeros(len(encoded["input_ids"]), dtype=torch.bool) for role in ("system", "user")}
    for message, (start, end) in zip(messages, ranges, strict=True):
        mask = masks.get(message["role"])
        if mask is not None:
            for token, (first, last) in enumerate(encoded["offset_mapping"]):
                mask[token] |= first < end and last > start
    return PromptSpans(encoded["input_ids"], masks["system"], masks["user"])


def _contents(chat: ChatFormat, messages: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
    """Return the character range of each message's content: render marks in their place and look where they are."""
    marks = [f"AgentrlSpan{index}Mark" for index in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    frame = chat.text(marked, [], generation_prompt=True)
    pieces = []
    for mark in marks:
        piece, found, frame = frame.partition(mark)
        if not found:
            raise _rewritten(chat)
        pieces.append(piece)
    pieces.append(frame)
    # Llama's template trims contents
    for contents in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
        ranges, position, built = [], 0, ""
        for piece, content in zip(pieces, contents, strict=False):
            position += len(piece)
            ranges.append((position, position + len(content)))
            position += len(content)
            built += piece + content
        if built + pieces[-1] == text:
            return ranges
    raise _rewritten(chat)


def _messages(chat: ChatFormat, messages: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
    """Return the character range of each message with its marks: the text by which it makes the prompt longer."""
    ranges, end = [], 0
    for index in range(len(messages)):
        start, upto = end, chat.text(messages[: index + 1], [], generation_prompt=False)
        if not text.startswith(upto):
            raise _rewritten(chat)
        end = len(upto)
        ranges.append((start, end))
    return ranges


def _rewritten(chat: ChatFormat) -> UserError:
    return UserError(
        f"the chat template of {chat.tokenizer.name_or_path} rewrites messages, so their place in the prompt is "
        "unknown; try extent=content, or another model"
    )
