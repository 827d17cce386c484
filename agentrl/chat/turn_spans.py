"""Finds the words, the calls and the end token of an assistant's turn, by rendering test turns with the chat template.

A test turn has a mark in place of the words, no call, one call or two calls. The rendered text shows what the template
writes around each part. If the template rewrites a part of a turn, the turn is refused with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from agentrl.config.templates import OFFER
from agentrl.core.errors import UserError

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]  # (messages, whether the assistant writes next) -> text
MARK, THOUGHT = "AgentrlWordsMark", "AgentrlThoughtMark"
USER: Message = {"role": "user", "content": "Hello"}
PROBE = [{"name": f"agentrl_probe_{name}", "arguments": {"key": "value"}} for name in ("one", "two")]


class Part(Enum):
    """A part of a turn."""

    OUTSIDE = "text of the template: an empty think block, a role's heading, a line break after the end"
    OPENING = "the text that opens the words: a think tag, the name of a channel"
    WORDS = "the assistant's words"
    CLOSING = "the text that closes the words"
    CALLS = "the calls with all their marks"
    SPACE = "white space between the parts above"
    END = "the token that ends the turn"


@dataclass(frozen=True)
class Stretch:
    """A part of a turn, from character `start` up to `end`."""

    start: int
    end: int
    part: Part


def replace_words(message: Message, words: str) -> Message:
    """Copy an assistant message with `words` in place of what it says."""
    field = "reasoning_content" if message.get("reasoning_content") else "content"
    return {**message, field: words}


def words_of(message: Message) -> str:
    """Return what an assistant message says, as reasoning or as content."""
    return str(message.get("reasoning_content") or message.get("content") or "")


def calls_message(calls: Sequence[dict[str, Any]]) -> Message:
    """Make an assistant message that has only calls."""
    return {
        "role": "assistant",
        "content": "",
        **({"tool_calls": [{"type": "function", "function": call} for call in calls]} if calls else {}),
    }


class TurnReader:
    """Divides assistant turns into their parts, as one chat template renders them."""

    def __init__(self, render: Render, name: str, added: Sequence[str]) -> None:
        self._render, self._name, self._added = render, name, added

    def divide(self, turn: str, framed: str, words: str, calls: Sequence[dict[str, Any]]) -> list[Stretch]:
        """Return the parts of `turn`, in order. `framed` is the same turn with MARK in place of `words`, if it has any.

        Raises:
            UserError: the template leaves out or rewrites a part of the turn, or does not end it.
        """
        found = self._words(framed) if words.strip() else []
        found = sorted([*found, *self._calls(framed, calls)], key=lambda stretch: stretch.start)
        end = self.call_end if calls else self.answer_end
        stop = len(framed.rstrip()) - len(end)
        if not framed.rstrip().endswith(end) or stop < max((stretch.end for stretch in found), default=0):
            raise self._refusal("does not end all turns with the same token")
        stretches = [*self._around(framed, found, stop), Stretch(stop, stop + len(end), Part.END)]
        stretches.append(Stretch(stop + len(end), len(framed), Part.OUTSIDE))
        return self._with_words(stretches, turn, framed, words)

    def _words(self, framed: str) -> list[Stretch]:
        at = framed.find(MARK)
        if at < 0:
            raise UserError(
                f"the chat template of {self._name} drops the reasoning of a turn with tool calls, so expert traces "
                "cannot be masked; set algo.trace.drop=[reasoning] (PACT), or the other model.reasoning, or use a "
                "model with Qwen2.5's or Qwen3's template"
            )
        if framed.count(MARK) > 1:
            raise self._refusal("writes the words of a turn twice")
        return [Stretch(at, at + len(MARK), Part.WORDS)]

    def _calls(self, framed: str, calls: Sequence[dict[str, Any]]) -> list[Stretch]:
        if not calls:
            return []
        block = self.calls(calls)
        at = framed.rfind(block)
        if at < 0:
            raise self._refusal("writes calls differently if the turn also has words")
        return [Stretch(at, at + len(block), Part.CALLS)]

    def _around(self, framed: str, found: list[Stretch], stop: int) -> list[Stretch]:
        """Return the parts in `found`, and the parts before, between and after them."""
        stretches: list[Stretch] = []
        position = 0
        for index, stretch in enumerate([*found, Stretch(stop, stop, Part.END)]):
            between = framed[position : stretch.start]
            before = found[index - 1].part if index else None
            if not between.strip():
                part = Part.SPACE
            elif before is None:
                own = self._own_beginning(between, stretch)
                stretches.append(Stretch(0, own, Part.OUTSIDE))
                position, part = own, Part.OPENING
            elif before is Part.WORDS:
                part = Part.CLOSING
            elif stretch.part is Part.WORDS:
                part = Part.OPENING
            else:
                raise self._refusal(f"writes {between.strip()[:40]!r} after a turn's calls")
            stretches += [Stretch(position, stretch.start, part), stretch]
            position = stretch.end
        return [stretch for stretch in stretches if stretch.end > stretch.start]

    def _own_beginning(self, text: str, first: Stretch) -> int:
        """Return the length of the template's own text at the beginning of a turn."""
        if text.strip() == self._empty_thought or first.part is Part.END:
            return len(text)
        # The heading of the role is in the turn if the prompt leaves it out.
        headings = (n for n in range(len(text), 0, -1) if text[:n].strip() and self._asked.endswith(text[:n]))
        return next(headings, 0)

    def _with_words(self, stretches: list[Stretch], turn: str, framed: str, words: str) -> list[Stretch]:
        """Move the parts of the framed turn to their places in the turn itself."""
        if not words.strip():
            return stretches
        before, _, after = framed.partition(MARK)
        written = turn[len(before) : len(turn) - len(after)]
        whole = turn.startswith(before) and turn.endswith(after) and len(turn) >= len(before) + len(after)
        if not whole or written.strip() != words.strip() or written not in words:
            raise self._refusal("rewrites the words of a turn")
        shift = len(written) - len(MARK)
        return [
            Stretch(s.start + shift * (s.start > len(before)), s.end + shift * (s.end > len(before)), s.part)
            for s in stretches
        ]

    def calls(self, calls: Sequence[dict[str, Any]]) -> str:
        """Return the calls as the template writes them, including all marks around them."""
        block = self._block(calls)
        if not block:
            raise self._refusal("drops calls")
        if len(calls) > 1 and block in (self._block(calls[:-1]), self._block(calls[1:])):
            raise self._refusal("drops some of the calls of a turn with several calls")
        return block

    def _block(self, calls: Sequence[dict[str, Any]]) -> str:
        turn = self._alone(calls_message(calls)).rstrip().removesuffix(self.call_end)
        empty = self._alone(calls_message([])).rstrip().removesuffix(self.answer_end).rstrip()
        block = turn.removeprefix(empty).strip()
        if THOUGHT in block:
            raise self._refusal("writes the reasoning of a turn with calls differently from that of an answer")
        return block

    @cached_property
    def answer_end(self) -> str:
        """The token that ends a turn without calls."""
        turn = self._alone({"role": "assistant", "content": MARK})
        end = turn.partition(MARK)[2].split()
        if not end:
            raise self._refusal(f"does not write the end of a turn, so a model would not learn to stop; {OFFER}")
        return end[0]  # a token after a line break, such as Phi-3's, ends the conversation

    @cached_property
    def call_end(self) -> str:
        """The token that ends a turn with calls: the same as without calls, or a token written once for all calls."""
        turn = self._alone(calls_message(PROBE[:1])).rstrip()
        if turn.endswith(self.answer_end):
            return self.answer_end
        twice = self._alone(calls_message(PROBE))
        ends = [token for token in self._added if turn.endswith(token) and twice.count(token) == turn.count(token)]
        if not ends:
            raise self._refusal(
                f"does not write the end of a turn with calls, so a model would not learn to stop; {OFFER}"
            )
        return max(ends, key=len)

    @cached_property
    def _asked(self) -> str:
        return self._render([USER], True)

    @cached_property
    def _empty_thought(self) -> str | None:
        """The empty think block of a turn without thoughts. None if the template has no think blocks."""
        message = {"role": "assistant", "content": "", "reasoning_content": MARK}
        try:
            turn = self._alone(message, unprompted=False).rstrip()
        except UserError:  # the prompt has closed the block already
            return None
        before, found, after = turn.partition(MARK)
        return (before + after.removesuffix(self.answer_end)).strip() if found else None

    def _alone(self, message: Message, unprompted: bool = True) -> str:
        """Render `message` as the first reply of a conversation, with a thought if the prompt opens a think block."""
        thought = {**message, "reasoning_content": THOUGHT}
        for one in (message, thought) if unprompted else (message,):
            text = self._render([USER, one], False)
            if text.startswith(self._asked):
                return text[len(self._asked) :]
        raise self.divergence_error(self._asked, text)

    def divergence_error(self, asked: str, text: str) -> UserError:
        """Make the error for a turn whose text does not begin with the prompt."""
        same = next(
            (i for i, (a, b) in enumerate(zip(asked, text, strict=False)) if a != b), min(len(asked), len(text))
        )
        return self._refusal(
            f"rewrites the text before a turn ({asked[same:][:40]!r} becomes {text[same:][:40]!r}), so expert traces "
            "cannot be masked; try the other model.reasoning, model.thinking=off, or a model whose template keeps "
            "earlier text"
        )

    def _refusal(self, reason: str) -> UserError:
        return UserError(f"the chat template of {self._name} {reason}")
