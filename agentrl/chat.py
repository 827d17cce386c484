"""Between messages and tokens: rendering prompts and expert traces, and naming the component of every token.

Sampled tokens are never re-tokenised: `label_completion` reads the text of each id as it stands. Expert traces are
rendered by the model's own chat template and labelled through character offsets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from agentrl.benches.base import Task
from agentrl.errors import UserError
from agentrl.traces.records import ExpertTrace, TraceTurn
from agentrl.trajectory import Component

CALL_OPENINGS = ("<tool_call>", "<|tool_call|>", "<|python_tag|>", "functools[")
THINKING_ARGUMENTS = ("enable_thinking", "thinking")  # what families call the switch in their chat templates
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
Span = tuple[int, int, int, int, int]  # first character, end, component, turn, chunk
TRACE_HEADING = "\nReference trace:\n"


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
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self.arguments,
            )
        except TemplateError as error:
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
        UserError: the chat template rewrites earlier turns, so spans cannot be located.
    """
    messages = list(task.prompt)
    text = prompt_text = chat.text(messages, task.tools, generation_prompt=True)
    spans: list[Span] = []

    def extend(new: list[dict[str, Any]], generation_prompt: bool) -> str:
        nonlocal text
        messages.extend(new)
        longer = chat.text(messages, task.tools, generation_prompt)
        if not longer.startswith(text):
            raise UserError(
                f"the chat template of {chat.tokenizer.name_or_path} rewrites earlier turns, so expert traces cannot "
                "be masked; use a model whose template is prefix-preserving, or give one in its tokenizer"
            )
        added, text = longer[len(text) :], longer
        return added

    for index, turn in enumerate(trace.turns):
        assistant, *observations = turn_messages(turn, chat.reasoning)
        start = len(text)
        spans += _assistant_spans(extend([assistant], False), start, index, turn)
        start = len(text)
        if observations or with_answer or index + 1 < len(trace.turns):
            extend(observations, True)
            spans.append((start, len(text), Component.OBSERVATION, index, -1))
    if with_answer:
        start, answer = len(text), f"<answer>{trace.answer}</answer>"
        added = extend([{"role": "assistant", "content": answer}], False)
        at = start + added.index(answer)
        spans.append((at, at + len(answer), Component.ANSWER, len(trace.turns), -1))
        spans.append((at + len(answer), len(text), Component.DELIMITER, len(trace.turns), -1))

    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    prompt_ids = chat.ids(prompt_text)
    ids, offsets = encoded["input_ids"][len(prompt_ids) :], encoded["offset_mapping"][len(prompt_ids) :]
    if encoded["input_ids"][: len(prompt_ids)] != prompt_ids:
        raise UserError(f"the tokenizer of {chat.tokenizer.name_or_path} merges tokens across the start of a turn")
    component, turns, chunks = [], [], []
    for start, end in offsets:
        # A token belongs to the last span that it touches: a merged leading blank must not hide what follows it.
        touching = [span for span in spans if span[0] < max(end, start + 1) and span[1] > start]
        _, _, kind, turn_index, chunk = touching[-1] if touching else (0, 0, Component.DELIMITER, 0, -1)
        component.append(int(kind))
        turns.append(turn_index)
        chunks.append(chunk)
    return TokenizedTrace(prompt_ids, ids, component, turns, chunks)


def _assistant_spans(added: str, start: int, index: int, turn: TraceTurn) -> list[Span]:
    """Character spans of one rendered expert turn; `added` is its text, `start` where it begins in the whole."""
    spans: list[Span] = [(start, start + len(added), Component.DELIMITER, index, -1)]
    cursor, safe = 0, len(turn.safe_chunks())
    for number, chunk in enumerate(turn.chunks):
        text = chunk.text.strip("\n")  # templates strip the ends of a think block
        at = added.find(text, cursor)
        if at < 0:
            raise UserError(
                "the chat template drops a turn's reasoning beside a tool call, so expert traces cannot be masked; set "
                "algo.trace.drop=[reasoning] (PACT), or use a model with Qwen2.5's or Qwen3's template"
            )
        end = at + len(text)
        spans.append((start + at, start + end, Component.REASONING, index, number if number < safe else -1))
        cursor = end
    if turn.calls:
        rest = added[cursor:]
        opening = re.search("|".join(map(re.escape, CALL_OPENINGS)) + r"|[\[{]", rest)
        closing = max(rest.rfind("</tool_call>") + len("</tool_call>") - 1, rest.rfind("}"), rest.rfind("]"))
        if opening:
            first = start + cursor
            spans.append((first + opening.start(), first + closing + 1, Component.TOOL_CALL, index, -1))
    return spans


class CompletionLabeller:
    """Names turn and component of sampled tokens from the text of each single id."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

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
        body = text.find(THINK_CLOSE) + len(THINK_CLOSE) if THINK_CLOSE in text else 0
        call_at = len(text)
        if calls:
            opening = re.compile("|".join(map(re.escape, CALL_OPENINGS)) + r"|\{")
            found = opening.search(text, body) or opening.search(text)  # a call inside a think block may count, too
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
