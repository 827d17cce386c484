"""What the environment says, as the tokens that stand between two turns of the policy.

Tokens are only ever appended: results and the user's words are written as the chat template writes them after an
assistant's turn. A template that drops the reasoning of earlier turns is not followed in that.
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
    """Token ids from the end of the assistant's turn to where it writes again.

    `before` are the tokens so far. A turn that a token budget cut has no end of its own: the environment writes it.

    Raises:
        UserError: the chat template does not end an assistant's turn right after its text.
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
    return chat.ids(("" if own_end else end) + rest.removeprefix(end))


def _result_ids(chat: ChatFormat, said: list[dict[str, Any]]) -> list[int]:
    """Token ids of tool results, after the end token of the turn that made the calls."""
    # Some templates (gpt-oss) name the tool of a result after the assistant's call.
    made = {"type": "function", "function": {"name": said[0]["name"], "arguments": {}}}
    turns: list[dict[str, Any]] = [ASKED, {"role": "assistant", "content": "", "tool_calls": [made]}]
    before = chat.ids(chat.text(turns, [], generation_prompt=False))
    whole = chat.ids(chat.text([*turns, *said], [], generation_prompt=True))
    # Some templates write a line break after the token that ends a turn: the policy ends with the token.
    last = max((place for place, token in enumerate(before) if token == chat.tokenizer.eos_token_id), default=None)
    before = before if last is None else before[: last + 1]
    if whole[: len(before)] != before:
        raise UserError(
            f"the chat template of {chat.tokenizer.name_or_path} writes a turn with calls otherwise once results "
            "follow it, so no result can be appended; choose another model"
        )
    return whole[len(before) :]
