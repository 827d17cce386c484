"""The benchmarks' own verdicts, quirks included: answer correctness (ToolHop's and FTRL's rules) and Solve-P/R/F1.

Each reproduces its official code to the letter, since published numbers rest on it. What looks like a bug is one:
ToolHop strips any trailing dots and zeros, so that the answer 10 becomes 1 and the answer 0 is always right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrl.core.trajectory import ToolCall

Messages = Sequence[Mapping[str, Any]]


def answer_verify(prediction: Any, gold: str) -> bool:
    """FTRL: every part of `gold` (split at comma and blank) occurs in the prediction, case and commas aside."""
    text = json.dumps(prediction, ensure_ascii=False) if isinstance(prediction, dict | list) else str(prediction)
    text = text.lower().replace(",", "").strip()
    return all(part.lower().replace(",", "").strip() in text for part in gold.split(", "))


def toolhop_contains(text: str, answer: str) -> bool:
    """ToolHop: the answer is a substring, after its `rstrip('.0')` on both sides and without the text's commas."""
    return answer.rstrip(".0").lower() in text.rstrip(".0").replace(",", "").lower()


def toolhop_correct(messages: Messages, answer: str) -> float | None:
    """ToolHop's rule on the final text, else on a tool output just before it. None where it sets no verdict."""
    texts = _texts_to_judge(messages)
    return float(any(toolhop_contains(text, answer) for text in texts)) if texts else None


def ftrl_correct(messages: Messages, answer: str) -> float:
    """The rule of FTRL, MatchTIR and PACT, on the same texts."""
    return float(any(answer_verify(text, answer) for text in _texts_to_judge(messages)))


def strict_correct(messages: Messages, answer: str) -> float:
    """Ours: the content of the last <answer> tag equals the answer, case and surrounding white space aside."""
    found = re.findall(r"<answer>(.*?)</answer>", _final_text(messages), re.DOTALL)
    return float(bool(found) and found[-1].strip().lower() == answer.strip().lower())


def judge_corrected(messages: Messages, answer: str) -> float:
    """Ours, for rules=corrected: the last <answer> of the final text, or else that text, has the answer as whole words.

    Tool outputs are no answer, and no text is a wrong one.
    """
    final = _final_text(messages)
    found = re.findall(r"<answer>(.*?)</answer>", final, re.DOTALL)
    return float(has_whole(found[-1] if found else final, answer))


def has_whole(text: str, part: str) -> bool:
    """Do the words of `part` stand in `text`, not within longer words or numbers? Case, commas and a final .0 aside."""
    wanted = _normalise(part)
    return bool(wanted) and re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", _normalise(text)) is not None


def _normalise(text: str) -> str:
    return re.sub(r"(\d)\.0+(?!\d)", r"\1", " ".join(text.lower().replace(",", "").split()))


def solve_scores(
    calls: Iterable[ToolCall], golds: Mapping[str, Sequence[str]], *, corrected: bool = False
) -> tuple[float, float, float]:
    """FTRL's Solve-P, Solve-R and Solve-F1: a call solves the first open gold of its tool that its output verifies.

    Error texts count like any output, and a trajectory without calls has precision 1. `corrected`: a failed call solves
    nothing, golds must occur as whole words, and no calls are precision 0.
    """
    remaining = {name: list(answers) for name, answers in golds.items()}
    total = sum(map(len, remaining.values()))
    made = solved = 0
    for call in calls:
        made += 1
        solved += solves(call, remaining, corrected=corrected)
    return (solved / made if made else float(not corrected)), solved / total, 2 * solved / (made + total)


def solves(call: ToolCall, remaining: dict[str, list[str]], *, corrected: bool = False) -> bool:
    """Does the call solve an open gold of its tool? If so, the first that it does is taken out of `remaining`."""
    answers = [] if corrected and call.error else remaining.get(call.name, [])
    verify = has_whole if corrected else answer_verify
    hit = next((i for i, gold in enumerate(answers) if verify(call.observation, gold)), None)
    if hit is not None:
        answers.pop(hit)
    return hit is not None


def _texts_to_judge(messages: Messages) -> list[str]:
    """The final assistant text (none if empty), and the tool output if one comes right before it."""
    final = _final_text(messages)
    if not final:
        return []
    return [final] + [message.get("content") or "" for message in messages[-2:-1] if message["role"] == "tool"]


def _final_text(messages: Messages) -> str:
    if not messages or messages[-1]["role"] != "assistant":
        return ""
    return messages[-1].get("content") or ""
