"""The benchmarks' own verdicts: answer correctness (ToolHop's and FTRL's rules) and Solve-P/R/F1.

Each function reproduces its official code exactly, because the published numbers were made with it. The quirks are part
of it: ToolHop strips all trailing dots and zeros, so the answer 10 becomes 1 and the answer 0 is always right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrl.core.trajectory import ToolCall

Messages = Sequence[Mapping[str, Any]]


def answer_verify(prediction: Any, gold: str) -> bool:
    """Check FTRL's rule: every part of `gold` (split at comma and blank) is in the prediction; case does not count.

    Commas do not count either.
    """
    text = json.dumps(prediction, ensure_ascii=False) if isinstance(prediction, dict | list) else str(prediction)
    text = text.lower().replace(",", "").strip()
    return all(part.lower().replace(",", "").strip() in text for part in gold.split(", "))


def toolhop_contains(text: str, answer: str) -> bool:
    """Check ToolHop's rule: the text holds the answer, after `rstrip('.0')` on both and without the text's commas."""
    return answer.rstrip(".0").lower() in text.rstrip(".0").replace(",", "").lower()


def toolhop_correct(messages: Messages, answer: str) -> float | None:
    """Apply ToolHop's rule to the final text, else to a tool output just before it; None if ToolHop sets no verdict."""
    texts = _texts_to_judge(messages)
    return float(any(toolhop_contains(text, answer) for text in texts)) if texts else None


def ftrl_correct(messages: Messages, answer: str) -> float:
    """Apply the rule of FTRL, MatchTIR and PACT to the same texts."""
    return float(any(answer_verify(text, answer) for text in _texts_to_judge(messages)))


def strict_correct(messages: Messages, answer: str) -> float:
    """Apply our strict rule: the last <answer> tag holds the answer, ignoring case and outer white space."""
    found = re.findall(r"<answer>(.*?)</answer>", _final_text(messages), re.DOTALL)
    return float(bool(found) and found[-1].strip().lower() == answer.strip().lower())


def judge_corrected(messages: Messages, answer: str) -> float:
    """Apply our rule for rules=corrected: the answer is in the last <answer> of the final text as whole words.

    Without the tag the whole final text counts. Tool outputs are not answers, and an empty text is a wrong answer.
    """
    final = _final_text(messages)
    found = re.findall(r"<answer>(.*?)</answer>", final, re.DOTALL)
    return float(has_whole(found[-1] if found else final, answer))


def has_whole(text: str, part: str) -> bool:
    """Check whether `text` holds `part` as whole words or numbers. Case, commas and a final .0 do not count."""
    wanted = _normalise(part)
    return bool(wanted) and re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", _normalise(text)) is not None


def _normalise(text: str) -> str:
    return re.sub(r"(\d)\.0+(?!\d)", r"\1", " ".join(text.lower().replace(",", "").split()))


def solve_scores(
    calls: Iterable[ToolCall], golds: Mapping[str, Sequence[str]], *, corrected: bool = False
) -> tuple[float, float, float]:
    """Return FTRL's Solve-P, Solve-R and Solve-F1: a call solves the first open gold that its output verifies.

    A gold is a known sub-answer of the call's tool. Error texts count like any output, and a trajectory without calls
    has precision 1. With `corrected`, a failed call solves nothing, golds must appear as whole words, and a trajectory
    without calls has precision 0.
    """
    remaining = {name: list(answers) for name, answers in golds.items()}
    total = sum(map(len, remaining.values()))
    made = solved = 0
    for call in calls:
        made += 1
        solved += solves(call, remaining, corrected=corrected)
    return (solved / made if made else float(not corrected)), solved / total, 2 * solved / (made + total)


def solves(call: ToolCall, remaining: dict[str, list[str]], *, corrected: bool = False) -> bool:
    """Check whether the call solves an open gold of its tool. If so, remove the first such gold from `remaining`."""
    answers = [] if corrected and call.error else remaining.get(call.name, [])
    verify = has_whole if corrected else answer_verify
    hit = next((i for i, gold in enumerate(answers) if verify(call.observation, gold)), None)
    if hit is not None:
        answers.pop(hit)
    return hit is not None


def _texts_to_judge(messages: Messages) -> list[str]:
    """Return the final assistant text (if it is not empty), and the tool output just before it, if there is one."""
    final = _final_text(messages)
    if not final:
        return []
    return [final] + [message.get("content") or "" for message in messages[-2:-1] if message["role"] == "tool"]


def _final_text(messages: Messages) -> str:
    if not messages or messages[-1]["role"] != "assistant":
        return ""
    return messages[-1].get("content") or ""
