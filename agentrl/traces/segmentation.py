"""Cut reasoning into the semantic chunks of PACT, App. C.

Rules label the sentences first. If they leave too much open, an annotator (a model) labels the turn; without one, whole
paragraphs become chunks. A sentence that states the call literally always gets the type `explicit_call_preview`, and
never enters a prefix that the policy is shown. The joined texts of the chunks are the reasoning, unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from agentrl.core.expert_trace import CHUNK_TYPES, Chunk

PREVIEW = "explicit_call_preview"
# sentences -> a chunk type for each, or None if the annotator cannot tell
Annotator = Callable[[list[str]], list[str] | None]
EASY = 0.6  # the rules must name this share of the text; below it, the annotator labels the turn
# The first matching rule gives the type.
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
    """Return the chunks of a turn's reasoning; an empty text has none.

    Consecutive sentences of one type form one chunk. If the rules leave more than two fifths of the text unnamed,
    `annotate` labels the turn. Without it, or if its labels are unusable, every paragraph is a chunk of type `other`.
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
    """Split a text into sentences and lines. Each keeps the white space after it, so the joined pieces are the text."""
    pieces = re.findall(r"\s*\S.*?(?:(?<=[.!?])(?=\s)|\n|\Z)\s*", text, flags=re.S)
    return pieces if "".join(pieces) == text else [text] if text.strip() else []


def rule_type(sentence: str) -> str:
    """Return the first type whose rule matches the sentence, else `other`."""
    return next((kind for kind, pattern in RULES if re.search(rf"\b({pattern})\b", sentence, flags=re.I)), "other")


def previews(sentence: str, calls: Sequence[Mapping[str, Any]]) -> bool:
    """Check whether a sentence gives a call away: as code, as JSON, or by its name and an argument's value."""
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
    """Make one chunk of each paragraph, and hold back everything from the first sentence that previews a call."""
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
