"""A simple replacement of r_user without a judge: does the reply speak about the request, in its own words?


It does not measure quality or truth. It gives a run without a judge a reward of the user's side. A reply cannot earn it
by being empty, by repeating the request or by repeating itself. It is made for languages with spaces between words.
"""

from __future__ import annotations

import re

COVERAGE = 0.5  # share of the request's content words that earns full marks
LONG = 4  # a content word has at least this many letters
RUN = 5  # this many words in a row count as copied
REPEAT = 3  # this many words in a row count as a repetition when they occur again


def user_proxy(prompt: str, response: str) -> float:
    """Return coverage * originality * variety, in [0, 1]. `response` is the answer without a think block.

    coverage     share of the prompt's content words that the reply uses, full at COVERAGE; 1 if the prompt has none
    originality  share of the reply's runs of RUN words that are not in the prompt
    variety      share of the reply's runs of REPEAT words that are distinct
    A verbatim copy of the whole prompt is removed first, because a system prompt may ask for it.
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
