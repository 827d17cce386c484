"""Reading text as the instruction-following suites do: its language, its sentences, its words in capitals.

Upstream splits sentences and words with NLTK's punkt model, which has to be downloaded when it runs. Here both are
rules; docs/hif.md says where they differ.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import zip_longest

import langdetect

langdetect.DetectorFactory.seed = 0  # unseeded, the same text gets different answers

# Abbreviations that end in a period without ending a sentence, in lower case and without that last period.
ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|sr|jr|st|rev|hon|gen|col|sgt|capt|lt|gov|sen|rep|pres|vs|etc|e.g|i.e|cf|al|inc|ltd|co|corp|dept|"
    "est|approx|no|vol|fig|ed|eds|pp|p.m|a.m|u.s|u.k|u.n|ph.d|m.d|b.a|m.a|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|"
    "dec".replace(".", r"\.")
)
CONTRACTION = re.compile(r"(?i)n['’]t$|['’](?:s|m|d|ll|re|ve)$")


@lru_cache(maxsize=4096)
def detect_language(text: str) -> str | None:
    """ISO 639-1 code of the language that `text` is written in; None where it holds nothing to tell it by."""
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:  # no letters
        return None


def count_sentences(text: str) -> int:
    """Sentences end at . ? or ! with any closing quotes and brackets, before white space or the end of the text.

    A period after an abbreviation or a single initial ends one only at the end of the text; so does an ellipsis before
    a small letter. Line breaks end nothing, and an unfinished last sentence counts.
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


def capital_words(text: str) -> int:
    """Words whose letters are all capitals. Hyphenated words are one, contractions two (DON'T: DO, N'T)."""
    count = 0
    for token in re.findall(r"[^\s\"“”()\[\]{}<>,;:!?*#@&%$`]+", text):
        # An inner apostrophe belongs to the word, one around it is a quotation mark; only the last period may be cut.
        word = token.strip("'‘’").removesuffix(".")
        for piece in word.replace("--", " ").split():
            ending = CONTRACTION.search(piece)
            parts = [piece[: ending.start()], ending.group()] if ending else [piece]
            count += sum(part.isupper() for part in parts)
    return count


def bullets(text: str) -> int:
    """Lines that are Markdown bullets: * or - and a blank, then text."""
    return len(re.findall(r"^[ \t]*[*-][ \t]+[^\s*-]", text, flags=re.MULTILINE))


def whole_words(word: str, text: str) -> int:
    """Occurrences of `word`, taken literally and in any case, that are no part of a longer word."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE))


def strict_json(text: str) -> bool:
    """Whether `text` is a JSON object or array by the standard, which knows no NaN or Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict | list)
    except (ValueError, RecursionError):  # not JSON, or nested beyond what the parser follows
        return False
