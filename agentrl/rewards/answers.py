"""The final turn earns the token F1 of its answer (PACT, App. B)."""

from __future__ import annotations

import re
import string

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SPLIT = str.maketrans(string.punctuation, " " * len(string.punctuation))


def extract_answer(text: str) -> str:
    """Content of the last <answer>...</answer>, or the whole text where there is none; stripped.

    A think block is no part of the answer and is left out first, with all that follows where it was never closed.
    """
    text = _said(text)
    found = _ANSWER.findall(text)
    return (found[-1] if found else text).strip()


def has_tag(text: str) -> bool:
    """Whether `extract_answer` finds an answer in tags."""
    return _ANSWER.search(_said(text)) is not None


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the two sets of words, lower-cased and split at white space and punctuation (so 1,861 is two words).

    0 where either has no word. This is MatchTIR's rule: word order and repetition do not count.
    """
    predicted, wanted = _words(prediction), _words(reference)
    common = len(predicted & wanted)
    return 2 * common / (len(predicted) + len(wanted)) if common else 0.0


def _said(text: str) -> str:
    """What stands after the think block; nothing where it was opened and never closed."""
    after = text.rpartition("</think>")[2]
    return "" if after.lstrip().startswith("<think>") else after


def _words(text: str) -> set[str]:
    return set(text.lower().translate(_SPLIT).split())
