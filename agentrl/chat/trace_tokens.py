"""Tokenises an expert trace and labels each token with its component. Supervised losses train on these tokens.

The model's chat template renders the trace. Character offsets tell which part of a turn a token belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from agentrl.chat.format import ChatFormat
from agentrl.chat.trace_messages import turn_messages
from agentrl.chat.turn_spans import MARK, Part, replace_words, words_of
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component

Span = tuple[int, int, int, int, int]  # first character, end, component, turn, chunk
# Component of each part of a turn. What only the template writes is context, like the text of the environment.
TURN_PARTS = {
    Part.OUTSIDE: Component.OBSERVATION,
    Part.SPACE: Component.DELIMITER,
    Part.END: Component.DELIMITER,
    Part.OPENING: Component.REASONING,
    Part.CLOSING: Component.REASONING,
    Part.WORDS: Component.DELIMITER,  # the spans of the chunks come on top
    Part.CALLS: Component.TOOL_CALL,
}
ORDER = list(TURN_PARTS)
ANSWER_PARTS = TURN_PARTS | dict.fromkeys((Part.OPENING, Part.WORDS, Part.CLOSING), Component.ANSWER)


@dataclass(frozen=True)
class TokenizedTrace:
    """The tokens of an expert trace after its prompt. `ids`, `component`, `turn` and `chunk` have the same length L."""

    prompt_ids: list[int]
    ids: list[int]
    component: list[int]  # Component values
    turn: list[int]  # 0-based expert turn
    chunk: list[int]  # 0-based chunk in its turn for tokens of safe reasoning, else -1


def tokenize_trace(chat: ChatFormat, task: Task, trace: ExpertTrace, with_answer: bool = False) -> TokenizedTrace:
    """Return the tokens of h* after the plain prompt x, labelled for the SFT loss (PACT, eq. 9).

    Raises:
        UserError: the chat template rewrites or leaves out a part of a turn, so its tokens cannot be found.
    """
    written = _Conversation(chat, task)
    for index, turn in enumerate(trace.turns):
        assistant, *observations = turn_messages(turn, chat.reasoning)
        written.add_assistant(assistant, index, turn)
        if observations or with_answer or index + 1 < len(trace.turns):
            written.add_others(observations, index)
    if with_answer:
        written.add_assistant(
            {"role": "assistant", "content": f"<answer>{trace.answer}</answer>"}, len(trace.turns), None
        )
    ids, offsets = _encode(chat.tokenizer, written.text, written.starts)
    prompt_ids = chat.ids(written.text[: written.starts[0]])
    if ids[: len(prompt_ids)] != prompt_ids:
        raise UserError(f"the tokenizer of {chat.tokenizer.name_or_path} merges tokens across the start of a turn")
    component, turns, chunks = [], [], []
    for start, end in offsets[len(prompt_ids) :]:
        # A token belongs to the last span that it touches: a leading blank merged into a token must not decide.
        touching = [span for span in written.spans if span[0] < max(end, start + 1) and span[1] > start]
        _, _, kind, turn_index, chunk = touching[-1] if touching else (0, 0, Component.DELIMITER, 0, -1)
        component.append(int(kind))
        turns.append(turn_index)
        chunks.append(chunk)
    return TokenizedTrace(prompt_ids, ids[len(prompt_ids) :], component, turns, chunks)


class _Conversation:
    """A prompt and the messages after it, rendered one by one, with the spans of what each added."""

    def __init__(self, chat: ChatFormat, task: Task) -> None:
        self._chat, self._tools, self._messages = chat, task.tools, list(task.prompt)
        self.text = chat.text(task.prompt, task.tools, generation_prompt=True)
        self.spans: list[Span] = []
        self.starts: list[int] = []  # characters at which the assistant begins to write

    def add_others(self, messages: list[dict[str, Any]], turn: int) -> None:
        """Add messages of tools or the user, and ask the assistant to go on."""
        start = len(self.text)
        self.text = self._extend(messages, True)
        self._messages += messages
        self.spans.append((start, len(self.text), Component.OBSERVATION, turn, -1))

    def add_assistant(self, message: dict[str, Any], number: int, turn: TraceTurn | None) -> None:
        """Add a message of the assistant: an expert's turn, or the final answer if `turn` is None."""
        start, reader = len(self.text), self._chat.turns
        words, calls = words_of(message), list(turn.calls) if turn else []
        text = self._extend([message], False)
        framed = text if not words.strip() else self._extend([replace_words(message, MARK)], False)
        # The later span wins a token that touches two spans, so the words win over the marks around them.
        stretches = sorted(reader.divide(text[start:], framed[start:], words, calls), key=lambda s: ORDER.index(s.part))
        self.starts.append(start)
        self.text = text
        self._messages.append(message)
        if turn is None:
            self.spans += [(start + s.start, start + s.end, ANSWER_PARTS[s.part], number, -1) for s in stretches]
            return
        safe, last = len(turn.safe_chunks()), len(turn.chunks) - 1
        for stretch in stretches:
            begin, end = start + stretch.start, start + stretch.end
            # The marks that open and close the reasoning belong to its first and last chunk.
            chunk = {Part.OPENING: min(safe, 1) - 1, Part.CLOSING: min(last, safe - 1)}.get(stretch.part, -1)
            kind = TURN_PARTS[stretch.part]
            if stretch.part is Part.OPENING and not words.strip():  # the turn has only calls
                kind, chunk = Component.TOOL_CALL, -1
            self.spans.append((begin, end, kind, number, chunk))
            if stretch.part is Part.WORDS:
                self.spans += _chunk_spans(turn, text[begin:end], begin, number)

    def _extend(self, new: list[dict[str, Any]], generation_prompt: bool) -> str:
        longer = self._chat.training_text([*self._messages, *new], self._tools, generation_prompt)
        if not longer.startswith(self.text):
            raise self._chat.turns.divergence_error(self.text, longer)
        return longer


def _chunk_spans(turn: TraceTurn, written: str, start: int, number: int) -> list[Span]:
    """Return the spans of the chunks of a turn, whose reasoning is `written` from character `start` on.

    Line breaks at both ends of a chunk are delimiters. Templates strip those at the ends of the whole reasoning.
    """
    spans: list[Span] = [(start, start + len(written), Component.DELIMITER, number, -1)]
    position = start - "".join(chunk.text for chunk in turn.chunks).index(written)
    safe = len(turn.safe_chunks())
    for index, chunk in enumerate(turn.chunks):
        text = chunk.text
        begin = position + len(text) - len(text.lstrip("\n"))
        position += len(text)
        end = min(position - len(text) + len(text.rstrip("\n")), start + len(written))
        if begin < end:
            kind = Component.REASONING
            spans.append((max(begin, start), end, kind, number, index if index < safe else -1))
    return spans


def _encode(
    tokenizer: PreTrainedTokenizerFast, text: str, starts: list[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of `text` and their character offsets. No token crosses the start of a turn.

    A model starts to write there, so it could never sample such a token.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    cuts = [start for start in starts if any(first < start < last for first, last in offsets)]
    if not cuts:
        return encoded["input_ids"], offsets
    ids: list[int] = []
    offsets = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += piece["input_ids"]
        offsets += [(first + begin, last + begin) for first, last in piece["offset_mapping"]]
    return ids, offsets
