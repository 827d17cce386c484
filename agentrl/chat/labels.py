"""Finds the turn and the component of every sampled token.

Sampled tokens are never tokenised again: the labels are read from the text of each single id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from agentrl.chat.format import ChatFormat
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Component

CALL_OPEN, THINK_CLOSE = "<tool_call>", "</think>"  # Qwen's marks, for tokenizers without a response template


class CompletionLabeller:
    """Finds the turn and the component of sampled tokens from the text of each single id."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ends: Iterable[int] = ()) -> None:
        """`ends` are further tokens that end a turn, besides those of the tokenizer and its template."""
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, *ends, *_template_ends(tokenizer)}
        fields = (tokenizer.response_template or {}).get("fields", {})
        thought = fields.get("reasoning_content") or fields.get("thinking") or {"close": THINK_CLOSE}
        self._thought_close = re.compile(thought.get("close_pattern") or re.escape(thought["close"]))
        calls = fields.get("tool_calls", {"open": CALL_OPEN})
        self._call_open = re.compile(calls.get("open_pattern") or re.escape(calls["open"]))

    def __call__(
        self, ids: list[int], policy_mask: list[int], messages: list[dict[str, Any]]
    ) -> tuple[list[int], list[Component]]:
        """Return the turn and the component of every completion token.

        A turn is a maximal run of policy tokens. The parsed `messages` say whether a turn ends in calls.
        """
        has_calls = [bool(message.get("tool_calls")) for message in messages if message["role"] == "assistant"]
        turns: list[int] = []
        components: list[Component] = []
        turn, position = -1, 0
        while position < len(ids):
            stop = position
            while stop < len(ids) and policy_mask[stop] == policy_mask[position]:
                stop += 1
            if policy_mask[position]:
                turn += 1
                calls = has_calls[turn] if turn < len(has_calls) else False
                components += self._label_turn(ids[position:stop], calls)
            else:
                components += [Component.OBSERVATION] * (stop - position)
            turns += [max(turn, 0)] * (stop - position)
            position = stop
        return turns, components

    def _piece(self, token: int) -> str:
        # Half of a multi-byte character decodes to U+FFFD. This does no harm: the marks that we look for are ASCII.
        if token not in self._pieces:
            self._pieces[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._pieces[token]

    def _label_turn(self, ids: list[int], calls: bool) -> list[Component]:
        pieces = ["" if token in self._ends else self._piece(token) for token in ids]
        text = "".join(pieces)
        closed = self._thought_close.search(text)
        body = closed.end() if closed else 0
        call_at = len(text)
        if calls:
            # A call in a think block may count, and a bench's reader may find calls in another form.
            found = self._call_open.search(text, body) or self._call_open.search(text) or re.search(r"\{", text)
            call_at = found.start() if found else body
            body = min(body, call_at)
        kinds = (Component.REASONING, Component.REASONING if calls else Component.ANSWER, Component.TOOL_CALL)
        labels = [Component.DELIMITER] * len(ids)
        for kind, (start, stop) in zip(kinds, ((0, body), (body, call_at), (call_at, len(text))), strict=True):
            # White space around a part is a delimiter; white space within it belongs to it.
            start, stop = stop - len(text[start:stop].lstrip()), start + len(text[start:stop].rstrip())
            position = 0
            for n, (token, piece) in enumerate(zip(ids, pieces, strict=True)):
                if token not in self._ends and position < stop and position + len(piece) > start:
                    labels[n] = kind
                position += len(piece)
        return labels


def _template_ends(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the tokens that end a turn in the template. Some models end a turn with calls by another token."""
    reader = ChatFormat(tokenizer, None, "content").turns
    ends = set()
    for name in ("answer_end", "call_end"):
        try:
            ends.add(tokenizer.convert_tokens_to_ids(getattr(reader, name)))
        except UserError:  # the template renders no calls, or no end: only the tokenizer's end token is left
            continue
    return {token for token in ends if isinstance(token, int)} - {tokenizer.unk_token_id}
