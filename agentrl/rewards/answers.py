"""Reward the final turn with the token F1 of its answer (PACT, App. B)."""

from __future__ import annotations

import re
import string

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SPLIT = str.maketrans(string.punctuation, " " * len(string.punctuation))


def extract_answer(text: str) -> str:
    """Return the content of the last <answer>...</answer>, or the whole text if there is none; stripped.

    A think block is not part of the answer and is removed first. If it was never closed, everything after it is removed
    too.
    """
    text = _said(text)
    found = _ANSWER.findall(text)
    return (found[-1] if found else text).strip()


def has_tag(text: str) -> bool:
    """Check whether `extract_answer` finds an answer in tags."""
    return _ANSWER.search(_said(text)) is not None


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the two sets of words, in [0, 1]; 0 if either set is empty.

    Words are lower-cased and split at white space and punctuation, so 1,861 is two words. This is MatchTIR's rule: word
    order and repetition do not count.
    """
    predicted, wanted = _words(prediction), _words(reference)
    common = len(predicted & wanted)
    return 2 * common / (len(predicted) + len(wanted)) if common else 0.0


def _said(text: str) -> str:
    """Return the text after the think block; empty if the block was opened and never closed."""
    after = text.rpartition("</think>")[2]
    return "" if after.lstrip().startswith("<think>") else after


def _words(text: str) -> set[str]:
    return set(text.lower().translate(_SPLIT).split())
