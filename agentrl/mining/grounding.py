"""Find where an argument comes from: the question, an earlier result, or the tool's own schema; else it is a guess.

Texts are compared by their words: case, punctuation, accents, possessives, plurals and word order do not count. Numbers
are compared by value, spelt out or not. Dates are compared by day, month and year, in any form.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CARDINALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MONTHS = {name.lower(): n for names in (calendar.month_name, calendar.month_abbr) for n, name in enumerate(names) if n}
STOPWORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "and",
        "or",
        "with",
        "is",
        "are",
        "was",
        "were",
        "be",
        "did",
        "do",
        "does",
        "has",
        "have",
        "had",
        "his",
        "her",
        "its",
        "their",
        "it",
        "that",
        "this",
        "which",
        "who",
        "whom",
        "whose",
        "what",
        "when",
        "where",
        "how",
        "many",
        "much",
        "s",
    ]
)
_TOKEN = re.compile(r"[^\W_]+")
_MONTH = "|".join(sorted(MONTHS, key=len, reverse=True))
_DATES = (
    re.compile(r"(?P<y>\d{4})-(?P<m>\d{1,2})(?:-(?P<d>\d{1,2}))?(?!\d)"),
    re.compile(rf"(?P<n>{_MONTH})\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<y>\d{{4}})", re.IGNORECASE),
    re.compile(rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<n>{_MONTH})\.?,?\s+(?P<y>\d{{4}})", re.IGNORECASE),
    re.compile(rf"(?P<n>{_MONTH})\.?,?\s+(?P<y>\d{{4}})", re.IGNORECASE),
    re.compile(r"(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})"),
    re.compile(rf"(?P<n>{_MONTH})\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?!\d|,?\s+\d{{4}})", re.IGNORECASE),
)
_YEAR = re.compile(r"(?<![\d.,])(1\d{3}|20\d{2})(?!\d|[.,]\d)")
Date = tuple[int, int, int]  # year, month, day; 0 if unknown


def find_words(texts: Iterable[str]) -> set[str]:
    """Return the lower-cased words and numbers of all texts, without accents, thousands' commas and possessives."""
    found: set[str] = set()
    for text in texts:
        bare = unicodedata.normalize("NFKD", text.lower())
        bare = "".join(c for c in bare if not unicodedata.combining(c))
        bare = re.sub(r"(?<=\d),(?=\d{3})", "", re.sub(r"['’]s\b", "", bare))
        found.update(_TOKEN.findall(bare))
    return found


def find_dates(text: str) -> list[Date]:
    """Return every date that a text states, in any of the usual forms."""
    found: dict[Date, None] = {}
    for pattern in _DATES:
        matches = list(pattern.finditer(text))
        text = pattern.sub(" ; ", text)  # so that a part of one date is not read as another date
        for part in (match.groupdict() for match in matches):
            month = MONTHS[part["n"].lower()] if part.get("n") else int(part["m"])
            day = int(part.get("d") or 0)
            if month <= 12 and day <= 31:
                found[int(part.get("y") or 0), month, day] = None
    return list(found)


def stem(word: str) -> str:
    """Return a plural without its ending."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def is_related(token: str, known: set[str]) -> bool:
    """Check whether a word, or a form of it (Serbia and Serbian, election and elected), is among the known ones."""
    if token in known or stem(token) in known:
        return True
    if not token.isalpha() or len(token) < 4:
        return False
    for other in known:
        if other[:4] == token[:4] and other.isalpha():
            shared = next(
                (i for i, (a, b) in enumerate(zip(token, other, strict=False)) if a != b), min(len(token), len(other))
            )
            if max(len(token), len(other)) - shared <= (3 if shared < 6 else 4):
                return True
    return False


@dataclass
class Knowledge:
    """What the model has seen when it makes a call: labelled texts in order, the question first."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    _words: list[set[str]] = field(default_factory=list, repr=False)

    def add(self, label: str, text: str) -> None:
        """Add one text, such as ("question", ...) or ("step 1", ...)."""
        self.texts.append((label, text))
        tokens = find_words([text])
        self._words.append(tokens | {stem(token) for token in tokens})

    def source(self, value: Any, schema: Mapping[str, Any] | None = None) -> str | None:
        """Return where a value comes from: the label of a text, "several texts" or "schema"; None if it is a guess.

        Flags, null and empty values need no source. In a list or an object, each value needs a source.
        """
        schema = schema or {}
        if value is None or isinstance(value, bool) or value in ("", [], {}):
            return "schema"
        if isinstance(value, dict):
            properties = schema.get("properties") or {}
            return _join_sources(self.source(item, properties.get(key)) for key, item in value.items())
        if isinstance(value, list):
            if "default" in schema and schema["default"] == value:
                return "schema"
            items = schema.get("items")
            return _join_sources(self.source(item, items if isinstance(items, dict) else None) for item in value)
        if str(schema.get("format", "")).startswith("date") and not find_dates(str(value)):
            return None  # a word of the question does not name a day
        return self._find_source(value) or ("schema" if is_offered(value, schema) else None)

    def _find_source(self, value: str | int | float) -> str | None:
        if isinstance(value, int | float):
            spelt: set[str] = set()
            if value in range(13):
                spelt = {name for names in (CARDINALS, ORDINALS) for name in names[int(value) : int(value) + 1] if name}
            if value in range(1, 13):  # the number may stand for a month's name
                spelt |= {calendar.month_name[int(value)].lower()}
            needed = find_words([f"{abs(value):.12g}"])
            return self._holder(lambda known: bool(spelt & known) or needed <= known)
        needed = find_words([value])
        if not needed:  # the value is punctuation, such as a delimiter
            return next((label for label, text in self.texts if value in text), None)
        needed = needed - STOPWORDS or needed
        found = self._holder(lambda known: all(is_related(token, known) for token in needed))
        return found or ("several texts" if self._is_all_dates(value) else None)

    def _holder(self, holds: Any) -> str | None:
        for (label, _), known in zip(self.texts, self._words, strict=True):
            if holds(known):
                return label
        return "several texts" if self._words and holds(set().union(*self._words)) else None

    def _is_all_dates(self, value: str) -> bool:
        """Check whether a value is only dates that follow from the texts: stated dates, or ends of a stated period."""
        stated = find_dates(value)
        rest = value
        for pattern in _DATES:
            rest = pattern.sub(" ", rest)
        if not stated or find_words([rest]) - STOPWORDS:
            return False
        days = self.days()
        return all(
            any((day.year, day.month, day.day if d else 0) == (y or day.year, m, d) for day in days)
            for y, m, d in stated
        )

    def days(self) -> list[datetime.date]:
        """Return the days that the texts state: exact days, then the ends of stated months and years."""
        exact: dict[datetime.date, None] = {}
        ends: dict[datetime.date, None] = {}
        years = [int(year) for _, text in self.texts for year in _YEAR.findall(text)]
        for year, month, day in [date for _, text in self.texts for date in find_dates(text)]:
            for each in [year] if year else years:
                last = calendar.monthrange(each, month)[1] if month and each else 0
                if day and day <= last:
                    exact[datetime.date(each, month, day)] = None
                elif last and not day:
                    ends |= {datetime.date(each, month, 1): None, datetime.date(each, month, last): None}
        for year in years:
            ends |= {datetime.date(year, 1, 1): None, datetime.date(year, 12, 31): None}
        return list(exact | ends)


def is_offered(value: Any, schema: Mapping[str, Any]) -> bool:
    """Check whether the schema offers the value: in an enum, as the default, or as an example in words."""
    if value in (schema.get("enum") or []) or ("default" in schema and schema["default"] == value):
        return True
    if isinstance(value, str) and value.strip():
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", json.dumps(schema, ensure_ascii=False)) is not None
    return False


def _join_sources(sources: Iterable[str | None]) -> str | None:
    """Return the source of a whole value, from the sources of its parts."""
    known = list(dict.fromkeys(sources))
    if None in known:
        return None
    texts = [source for source in known if source != "schema"]
    return texts[0] if len(texts) == 1 else "several texts" if texts else "schema"
