"""Reasoning cut into the semantic chunks of PACT, App. C: rules first, an annotator for the rest, else the safe way.

A sentence that states the call literally is `explicit_call_preview`, whoever labels the others: it never enters a
prefix. The texts of the chunks, joined, are the reasoning again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from agentrl.core.expert_trace import CHUNK_TYPES, Chunk

PREVIEW = "explicit_call_preview"
Annotator = Callable[[list[str]], list[str] | None]  # sentences -> a chunk type for each, None where it cannot tell
EASY = 0.6  # share of the text that rules must name; below it the turn is a hard one
# First match wins; each is the wording of one kind of sentence.
RULES: tuple[tuple[str, str], ...] = (
    ("failure_reflection", r"fail(ed|ure)?|error|did ?n.t work|no result|invalid|wrong|unexpected|not found"),
    ("fallback_plan", r"instead|otherwise|alternatively|try (again|another|a different)|retry|fall ?back"),
    (
        "irrelevant_tool_rejection",
        r"not (relevant|needed|useful|related|suitable)|irrelevant|other tools?|do(es)? not help",
    ),
    ("tool_scan", r"available (tools?|functions?)|tools? (i have|are|provided)|which tools?"),
    ("optional_arg_analysis", r"optional|default|can be (omitted|left out)|not required|leave (it|them) (out|empty)"),
    ("required_arg_grounding", r"parameters?|arguments?|requires?|required|takes|value (is|of)|set to|should be"),
    ("tool_selection", r"use|using|call|tool|function|choose|select|suitable|appropriate|helps?"),
    ("final_answer_grounding", r"answer is|therefore|so the (answer|result)|in conclusion|we (now )?have the answer"),
    ("decision_summary", r"so,? (i|let)|now i|next,? i|i will|i'll|let me|proceed|ready"),
    ("task_restate", r"need to|want(s)? to|asks?|question|task|find( out)?|looking for|goal|user"),
)


def segment(text: str, calls: Sequence[Mapping[str, Any]], annotate: Annotator | None = None) -> tuple[Chunk, ...]:
    """Chunks of a turn's reasoning; consecutive sentences of one type are one chunk. Empty text: none.

    Where the rules leave more than two fifths of the text unnamed, `annotate` labels the turn; without it, or where it
    gives nothing usable, every paragraph is a chunk of type `other`.
    """
    sentences = split_sentences(text)
    if not sentences:
        return ()
    kinds = [rule_type(sentence) for sentence in sentences]
    named = sum(len(one) for one, kind in zip(sentences, kinds, strict=True) if kind != "other")
    if named < EASY * len(text):
        labels = annotate(sentences) if annotate is not None else None
        usable = labels is not None and len(labels) == len(sentences) and set(labels) <= set(CHUNK_TYPES)
        if usable and labels is not None:
            kinds = labels
        else:
            return _paragraphs(sentences, calls)
    kinds = [PREVIEW if previews(one, calls) else kind for one, kind in zip(sentences, kinds, strict=True)]
    pairs = zip(kinds, sentences, strict=True)
    return tuple(Chunk(kind, "".join(one for _, one in run)) for kind, run in groupby(pairs, key=lambda pair: pair[0]))


def split_sentences(text: str) -> list[str]:
    """Sentences and lines with the white space that follows them, so that joining gives the text back."""
    pieces = re.findall(r"\s*\S.*?(?:(?<=[.!?])(?=\s)|\n|\Z)\s*", text, flags=re.S)
    return pieces if "".join(pieces) == text else [text] if text.strip() else []


def rule_type(sentence: str) -> str:
    """The type whose wording a sentence has, else `other`."""
    return next((kind for kind, pattern in RULES if re.search(rf"\b({pattern})\b", sentence, flags=re.I)), "other")


def previews(sentence: str, calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sentence gives a call away: written as code or JSON, or its name together with an argument's value."""
    for call in calls:
        name = str(call["name"])
        if f"{name}(" in sentence or f'"{name}"' in sentence or '"arguments"' in sentence:
            return True
        values = [_show(value) for value in dict(call["arguments"]).values()]
        if name in sentence and any(value and value in sentence for value in values):
            return True
    return False


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _paragraphs(sentences: list[str], calls: Sequence[Mapping[str, Any]]) -> tuple[Chunk, ...]:
    """The conservative way: paragraphs, and everything from the first preview on held back."""
    chunks: list[Chunk] = []
    text = ""
    for position, sentence in enumerate(sentences):
        if previews(sentence, calls):
            rest = "".join(sentences[position:])
            return (*chunks, *([Chunk("other", text)] if text else []), Chunk(PREVIEW, rest))
        text += sentence
        if "\n\n" in sentence:
            chunks.append(Chunk("other", text))
            text = ""
    return (*chunks, *([Chunk("other", text)] if text else []))
