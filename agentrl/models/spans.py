"""Which tokens of a prompt are the system's and which the user's, read from the chat template and not guessed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.chat.format import ChatFormat
from agentrl.core.errors import UserError


@dataclass(frozen=True)
class PromptSpans:
    """Token ids of a prompt (T of them) and the masks (T,) of what the system and the user said."""

    ids: list[int]
    system: Tensor
    user: Tensor


def prompt_spans(chat: ChatFormat, messages: list[dict[str, str]], extent: str) -> PromptSpans:
    """Spans of a rendered prompt. `extent` is 'message' (with the template's marks around it) or 'content' (the text).

    A token belongs to a span if any of its characters does.

    Raises:
        UserError: the template rewrites the messages, so that no span of the prompt is theirs.
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
    """Characters of each message's content: what stands in place of a mark that is rendered instead of it."""
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
    for contents in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):  # Llama's trims
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
    """Characters of each message with its marks: from where the prompt without it ends to where that with it ends."""
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
