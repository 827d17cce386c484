"""Reads text as the instruction-following suites do: its language, its sentences, its words in capitals.


Upstream splits sentences and words with NLTK's punkt model, which it must download at run time. Here rules do both, and
docs/hif.md says where the results differ.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import zip_longest

import langdetect

langdetect.DetectorFactory.seed = 0  # without a seed the same text gets different answers

# Abbreviations whose last period does not end a sentence, in lower case and without that period.
ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|sr|jr|st|rev|hon|gen|col|sgt|capt|lt|gov|sen|rep|pres|vs|etc|e.g|i.e|cf|al|inc|ltd|co|corp|dept|"
    "est|approx|no|vol|fig|ed|eds|pp|p.m|a.m|u.s|u.k|u.n|ph.d|m.d|b.a|m.a|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|"
    "dec".replace(".", r"\.")
)
CONTRACTION = re.compile(r"(?i)n['’]t$|['’](?:s|m|d|ll|re|ve)$")


@lru_cache(maxsize=4096)
def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of `text`. None if the text has no letters."""
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:  # no letters
        return None


def count_sentences(text: str) -> int:
    """Count the sentences. A sentence ends at . ? or ! with closing quotes and brackets, before white space or the end.

    A period after an abbreviation or a single initial ends a sentence only at the end of the text. So does an ellipsis
    before a small letter. A line break does not end a sentence. An unfinished last sentence counts.
    """
    count, open_sentence = 0, False
    words = text.split()
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        core = word.rstrip("\"'”’)]}*_")
        open_sentence = True
        if core.endswith((".", "?", "!")) and (not following or not _continues(core, following)):
            count, open_sentence = count + 1, False
    return count + open_sentence


def _continues(word: str, following: str) -> bool:
    """Whether the sentence goes on after the period at the end of `word`."""
    if not word.endswith("."):
        return False
    if word.endswith(".."):
        return following[0].islower()
    stem = word[:-1].lstrip("\"'“‘([{*_").lower()
    return ABBREVIATION.fullmatch(stem) is not None or (len(stem) == 1 and stem.isalpha() and stem != "i")


def count_capital_words(text: str) -> int:
    """Count the words in capitals. A hyphenated word counts as one, a contraction as two (DON'T: DO, N'T)."""
    count = 0
    for token in re.findall(r"[^\s\"“”()\[\]{}<>,;:!?*#@&%$`]+", text):
        # An inner apostrophe belongs to the word, an outer one is a quotation mark. Only the last period is removed.
        word = token.strip("'‘’").removesuffix(".")
        for piece in word.replace("--", " ").split():
            ending = CONTRACTION.search(piece)
            parts = [piece[: ending.start()], ending.group()] if ending else [piece]
            count += sum(part.isupper() for part in parts)
    return count


def count_bullets(text: str) -> int:
    """Count the lines that are Markdown bullets: * or - and a blank, then text."""
    return len(re.findall(r"^[ \t]*[*-][ \t]+[^\s*-]", text, flags=re.MULTILINE))


def count_whole_words(word: str, text: str) -> int:
    """Count `word`, taken literally and in any case, where it is not part of a longer word."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE))


def is_strict_json(text: str) -> bool:
    """Whether `text` is a JSON object or array by the standard, which has no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict | list)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply for the parser
        return False
