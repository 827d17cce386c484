"""Between messages and tokens: rendering prompts and expert traces, and naming the component of every token.

Sampled tokens are never re-tokenised: `label_completion` reads the text of each id as it stands. Expert traces are
rendered by the model's own chat template and labelled through character offsets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template

from agentrl.chat.turn_spans import MARK, Part, TurnReader, with_words, words_of
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component

CALL_OPEN, THINK_CLOSE = "<tool_call>", "</think>"  # Qwen's, where a tokenizer does not say how it is read
THINKING_ARGUMENTS = ("enable_thinking", "thinking")  # what families call the switch in their chat templates
Span = tuple[int, int, int, int, int]  # first character, end, component, turn, chunk
TRACE_HEADING = "\nReference trace:\n"
# What of a turn is a target: a template's own scaffolding is context, as what the environment writes.
TURN_PARTS = {
    Part.OUTSIDE: Component.OBSERVATION,
    Part.SPACE: Component.DELIMITER,
    Part.END: Component.DELIMITER,
    Part.OPENING: Component.REASONING,
    Part.CLOSING: Component.REASONING,
    Part.WORDS: Component.DELIMITER,  # the chunks lie over it
    Part.CALLS: Component.TOOL_CALL,
}
ORDER = list(TURN_PARTS)
ANSWER_PARTS = TURN_PARTS | dict.fromkeys((Part.OPENING, Part.WORDS, Part.CLOSING), Component.ANSWER)


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


@dataclass(frozen=True)
class TokenizedTrace:
    """An expert trace as tokens after its prompt; `ids`, `component`, `turn` and `chunk` share length L."""

    prompt_ids: list[int]
    ids: list[int]
    component: list[int]  # Component values
    turn: list[int]  # 0-based expert turn
    chunk: list[int]  # 0-based chunk in its turn for safe reasoning tokens, else -1


def trace_text(trace: ExpertTrace) -> str:
    """h* as text for the user's message: reasoning, call and observation of every turn, without the final answer."""
    lines = []
    for turn in trace.turns:
        reasoning = "".join(chunk.text for chunk in turn.chunks)
        if reasoning:
            lines.append(reasoning)
        lines += [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in turn.calls]
        lines += [f"<tool_response>\n{observation}\n</tool_response>" for observation in turn.observations]
        if turn.reply is not None:
            lines.append(f"User: {turn.reply}")
    return "\n".join(lines)


def turn_messages(turn: TraceTurn, reasoning_format: str) -> list[dict[str, Any]]:
    """Chat messages of one expert turn: the assistant's, one tool message per observation, the user's reply if any.

    What the assistant says to a user who replies is text and no hidden reasoning.
    """
    reasoning = "".join(chunk.text for chunk in turn.chunks)
    assistant: dict[str, Any] = {"role": "assistant", "content": reasoning}
    if reasoning_format == "think" and turn.reply is None:
        assistant = {"role": "assistant", "reasoning_content": reasoning, "content": ""}
    if turn.calls:
        assistant["tool_calls"] = [{"type": "function", "function": call} for call in turn.calls]
    names = [call["name"] for call in turn.calls] or ["tool"]
    observations = [
        {"role": "tool", "name": names[min(i, len(names) - 1)], "content": observation}
        for i, observation in enumerate(turn.observations)
    ]
    replies = [] if turn.reply is None else [{"role": "user", "content": turn.reply}]
    return [assistant, *observations, *replies]


def context_messages(task: Task, trace: ExpertTrace, rendering: str, reasoning_format: str) -> list[dict[str, Any]]:
    """The privileged context c^h = [x; h*] (PACT, eq. 7) as chat messages.

    `message` appends h* to the last user message; `turns` plays h* as earlier turns and then asks again.
    """
    *earlier, last = task.prompt
    if rendering == "message":
        return [*earlier, {**last, "content": last["content"] + TRACE_HEADING + trace_text(trace)}]
    played = [message for turn in trace.turns for message in turn_messages(turn, reasoning_format)]
    return [*task.prompt, *played, last]


def context_ids(
    chat: ChatFormat, task: Task, trace: ExpertTrace, rendering: str, max_tokens: int
) -> tuple[list[int], int]:
    """Token ids of [x; h*] and the number of expert turns kept: later turns go whole until h* fits `max_tokens`."""
    plain = len(chat.prompt_ids(task.prompt, task.tools))
    for kept in range(len(trace.turns), 0, -1):
        shortened = ExpertTrace(trace.task_id, trace.turns[:kept], trace.answer, trace.source)
        ids = chat.prompt_ids(context_messages(task, shortened, rendering, chat.reasoning), task.tools)
        if len(ids) - plain <= max_tokens:
            return ids, kept
    return chat.prompt_ids(task.prompt, task.tools), 0


def tokenize_trace(chat: ChatFormat, task: Task, trace: ExpertTrace, with_answer: bool = False) -> TokenizedTrace:
    """Teacher-forced tokens of h* after the plain prompt x, labelled for the component-aware SFT loss (eq. 9).

    Raises:
        UserError: the chat template rewrites or leaves out something, so spans cannot be located.
    """
    written = _Conversation(chat, task)
    for index, turn in enumerate(trace.turns):
        assistant, *observations = turn_messages(turn, chat.reasoning)
        written.assistant(assistant, index, turn)
        if observations or with_answer or index + 1 < len(trace.turns):
            written.others(observations, index)
    if with_answer:
        written.assistant({"role": "assistant", "content": f"<answer>{trace.answer}</answer>"}, len(trace.turns), None)
    ids, offsets = _encode(chat.tokenizer, written.text, written.starts)
    prompt_ids = chat.ids(written.text[: written.starts[0]])
    if ids[: len(prompt_ids)] != prompt_ids:
        raise UserError(f"the tokenizer of {chat.tokenizer.name_or_path} merges tokens across the start of a turn")
    component, turns, chunks = [], [], []
    for start, end in offsets[len(prompt_ids) :]:
        # A token belongs to the last span that it touches: a merged leading blank must not hide what follows it.
        touching = [span for span in written.spans if span[0] < max(end, start + 1) and span[1] > start]
        _, _, kind, turn_index, chunk = touching[-1] if touching else (0, 0, Component.DELIMITER, 0, -1)
        component.append(int(kind))
        turns.append(turn_index)
        chunks.append(chunk)
    return TokenizedTrace(prompt_ids, ids[len(prompt_ids) :], component, turns, chunks)


class _Conversation:
    """A prompt and what follows it, rendered message by message, with the spans of what was added."""

    def __init__(self, chat: ChatFormat, task: Task) -> None:
        self._chat, self._tools, self._messages = chat, task.tools, list(task.prompt)
        self.text = chat.text(task.prompt, task.tools, generation_prompt=True)
        self.spans: list[Span] = []
        self.starts: list[int] = []  # where the assistant begins to write

    def others(self, messages: list[dict[str, Any]], turn: int) -> None:
        """Tools or the user answer, and the assistant is asked to go on."""
        start = len(self.text)
        self.text = self._extended(messages, True)
        self._messages += messages
        self.spans.append((start, len(self.text), Component.OBSERVATION, turn, -1))

    def assistant(self, message: dict[str, Any], number: int, turn: TraceTurn | None) -> None:
        """The assistant says `message`: an expert's turn, or the final answer where there is none."""
        start, reader = len(self.text), self._chat.turns
        words, calls = words_of(message), list(turn.calls) if turn else []
        text = self._extended([message], False)
        framed = text if not words.strip() else self._extended([with_words(message, MARK)], False)
        # Later spans win a token that touches two: what is said wins over what stands around it.
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
            # What opens and closes the reasoning goes with its first and last chunk.
            chunk = {Part.OPENING: min(safe, 1) - 1, Part.CLOSING: min(last, safe - 1)}.get(stretch.part, -1)
            kind = TURN_PARTS[stretch.part]
            if stretch.part is Part.OPENING and not words.strip():  # there are calls alone
                kind, chunk = Component.TOOL_CALL, -1
            self.spans.append((begin, end, kind, number, chunk))
            if stretch.part is Part.WORDS:
                self.spans += _chunk_spans(turn, text[begin:end], begin, number)

    def _extended(self, new: list[dict[str, Any]], generation_prompt: bool) -> str:
        longer = self._chat.training_text([*self._messages, *new], self._tools, generation_prompt)
        if not longer.startswith(self.text):
            raise self._chat.turns.diverging(self.text, longer)
        return longer


def _chunk_spans(turn: TraceTurn, written: str, start: int, number: int) -> list[Span]:
    """Spans of the chunks of a turn whose reasoning is `written` from character `start` on.

    White space at either end of a chunk's lines only separates; templates strip that of the whole.
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
    """Ids of `text` and their characters. No token spans the start of a turn: a model begins to write there."""
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


class CompletionLabeller:
    """Names turn and component of sampled tokens from the text of each single id."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ends: Iterable[int] = ()) -> None:
        """`ends` are tokens that end a turn besides the tokenizer's own and its template's."""
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
        """Turn and component of every completion token.

        A turn is a maximal run of policy tokens; whether it ends in calls is read off the parsed `messages`.
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
        # Half of a multi-byte character decodes to a replacement mark; the delimiters sought are ASCII, so no harm.
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
            # A call inside a think block may count, and a bench's reader may find one that the template writes not so.
            found = self._call_open.search(text, body) or self._call_open.search(text) or re.search(r"\{", text)
            call_at = found.start() if found else body
            body = min(body, call_at)
        kinds = (Component.REASONING, Component.REASONING if calls else Component.ANSWER, Component.TOOL_CALL)
        labels = [Component.DELIMITER] * len(ids)
        for kind, (start, stop) in zip(kinds, ((0, body), (body, call_at), (call_at, len(text))), strict=True):
            # White space around a span separates; within one it belongs to it.
            start, stop = stop - len(text[start:stop].lstrip()), start + len(text[start:stop].rstrip())
            position = 0
            for n, (token, piece) in enumerate(zip(ids, pieces, strict=True)):
                if token not in self._ends and position < stop and position + len(piece) > start:
                    labels[n] = kind
                position += len(piece)
        return labels


def _template_ends(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Tokens that end a turn in the tokenizer's template: some models end one with calls otherwise than an answer."""
    reader = ChatFormat(tokenizer, None, "content").turns
    ends = set()
    for name in ("answer_end", "call_end"):
        try:
            ends.add(tokenizer.convert_tokens_to_ids(getattr(reader, name)))
        except UserError:  # it renders no calls, or nothing at the end: then the tokenizer's end token is all there is
            continue
    return {token for token in ends if isinstance(token, int)} - {tokenizer.unk_token_id}
