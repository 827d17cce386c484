"""A stand-in for r_user where no judge is asked: does the reply speak of what the user asked, in words of its own?

It knows nothing of quality or truth. It is there so that a run without a judge has a user side that cannot be earned
by an empty reply, by repeating the request, or by repeating itself. Meant for languages that put spaces between words.
"""

from __future__ import annotations

import re

COVERAGE = 0.5  # share of the request's content words that earns full marks
LONG = 4  # letters from which a word counts as a content word
RUN = 5  # words in a row that count as copied
REPEAT = 3  # words in a row whose recurrence counts as repetition


def user_proxy(prompt: str, response: str) -> float:
    """coverage * originality * variety, in [0, 1]; `response` is the answer without a think block.

    A verbatim copy of the whole prompt is cut out first, so that a system prompt may ask for it.
    coverage: share of the prompt's content words that the reply uses, full at COVERAGE; 1 if the prompt has none;
    originality: share of the reply's runs of RUN words that the prompt does not hold;
    variety: distinct share of the reply's runs of REPEAT words.
    """
    words = _words(response.replace(prompt.strip(), " ", 1) if prompt.strip() else response)
    if not words:
        return 0.0
    asked = _words(prompt)
    content = {word for word in asked if len(word) >= LONG}
    coverage = min(1.0, len(content & set(words)) / (COVERAGE * len(content))) if content else 1.0
    copied = set(_runs(asked, RUN))
    runs = _runs(words, RUN)
    originality = sum(run not in copied for run in runs) / len(runs) if runs else 1.0
    repeats = _runs(words, REPEAT)
    variety = len(set(repeats)) / len(repeats) if repeats else 1.0
    return coverage * originality * variety


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
