"""Turns the environment's messages into the tokens between two turns of the policy.

Tool results and user messages are written as the chat template writes them after an assistant's turn. Tokens are only
appended, so earlier turns keep their reasoning even if the chat template would drop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.chat.format import ChatFormat
from agentrl.core.errors import UserError

MARK = "the end of the assistant's turn"
ASKED = {"role": "user", "content": "?"}


def observation_ids(
    chat: ChatFormat, said: list[dict[str, Any]], before: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """Return the token ids from the end of the assistant's turn to the start of its next turn.

    said: the environment's messages, either tool results or one user message. before: the tokens so far. ends: the ids
    of the end tokens. A turn that a token budget cut has no end token, so the observation starts with one.

    Raises:
        UserError: the chat template does not end an assistant's turn right after its text, or it writes a turn with
            calls differently once results follow it.
    """
    own_end = bool(before) and before[-1] in ends
    if said[0]["role"] == "tool":
        ids, eos = _result_ids(chat, said), chat.tokenizer.eos_token_id
        closes = chat.tokenizer.eos_token in str(chat.template or chat.tokenizer.chat_template)
        return ids if own_end or not closes else [eos, *ids]
    written = [chat.tokenizer.decode([token]) for token in ends]
    text = chat.text([ASKED, {"role": "assistant", "content": MARK}, *said], [], generation_prompt=True)
    _, found, rest = text.partition(MARK)
    end = next((end for end in written if rest.startswith(end)), None)
    if not found or end is None:
        raise UserError(
            f"the chat template of {chat.tokenizer.name_or_path} does not end an assistant's turn with the end token "
            "right after its text, so no user message can follow; use a model with Qwen2.5's or Qwen3's template"
        )
    ids = chat.ids(end + rest.removeprefix(end))  # together: the end token of Phi swallows the line break behind it
    return ids[1:] if own_end and ids[0] in ends else ids


def _result_ids(chat: ChatFormat, said: list[dict[str, Any]]) -> list[int]:
    """Return the token ids of tool results, from after the end token of the turn that made the calls."""
    # Some templates (gpt-oss) take the tool's name in a result from the assistant's call.
    made = {"type": "function", "function": {"name": said[0]["name"], "arguments": {}}}
    turns: list[dict[str, Any]] = [ASKED, {"role": "assistant", "content": "", "tool_calls": [made]}]
    before = chat.ids(chat.text(turns, [], generation_prompt=False))
    whole = chat.ids(chat.text([*turns, *said], [], generation_prompt=True))
    # Some templates write a line break after the end token. The policy stops at the end token, so cut `before` there.
    last = max((place for place, token in enumerate(before) if token == chat.tokenizer.eos_token_id), default=None)
    before = before if last is None else before[: last + 1]
    if whole[: len(before)] != before:
        raise UserError(
            f"the chat template of {chat.tokenizer.name_or_path} writes a turn with calls differently once results "
            "follow it, so results cannot be appended; choose another model"
        )
    return whole[len(before) :]
