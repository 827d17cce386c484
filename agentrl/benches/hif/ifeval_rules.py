"""Checks the 25 instruction types of IFEval (arXiv 2311.07911), by the official rules and by our corrected rules.


OFFICIAL maps an instruction id to a check of the reply and the row's arguments. CORRECTED differs if a reply can meet
the official rule without following the instruction (docs/hif.md lists each case). An empty reply follows none.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from typing import Any

from agentrl.benches.hif.text import (
    count_bullets,
    count_capital_words,
    count_sentences,
    count_whole_words,
    detect_language,
    is_strict_json,
)

Check = Callable[..., bool]
RELATIONS = ("less than", "at least")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


def compare_counts(count: int, relation: str, bound: int) -> bool:
    """Whether `count` has the `relation` (one of RELATIONS) to `bound`."""
    return count < bound if relation == "less than" else count >= bound


# -- as the official code has it -------------------------------------------------------------------------------------


def pattern(keyword: str) -> str:
    """Read a keyword as a regular expression, as upstream. Upstream crashes on an invalid one; here it is literal."""
    try:
        re.compile(keyword)
    except re.error:
        return re.escape(keyword)
    return keyword


def keywords_exist(text: str, keywords: list[str]) -> bool:
    return all(re.search(pattern(keyword), text, flags=re.IGNORECASE) for keyword in keywords)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compare_counts(len(re.findall(pattern(keyword.strip()), text, flags=re.IGNORECASE)), relation, frequency)


def no_forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{pattern(word)}\b", text, flags=re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """If `letter` is not one of a to z, upstream draws a random one. Here most letters decide the verdict."""
    text = text.lower()
    letters = [letter.lower()] if is_letter(letter) else string.ascii_lowercase
    verdicts = [compare_counts(text.count(one), let_relation, let_frequency) for one in letters]
    return 2 * sum(verdicts) > len(verdicts)


def is_letter(letter: str) -> bool:
    return len(letter) == 1 and letter.lower() in string.ascii_lowercase


def response_language(text: str, language: str) -> bool:
    """A text whose language cannot be detected passes."""
    return detect_language(text) in (language, None)


def sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compare_counts(count_sentences(text), relation, num_sentences)


def paragraphs(text: str, num_paragraphs: int) -> bool:
    """Counts the parts between ***. An empty part is allowed only at the ends, and does not count."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def words(text: str, num_words: int, relation: str) -> bool:
    return compare_counts(len(re.findall(r"\w+", text)), relation, num_words)


def nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Counts the paragraphs between empty lines. Empty paragraphs do not count, except for the n of nth."""
    parts = [part.strip() for part in text.split("\n\n")]
    count = sum(map(bool, parts))
    if nth_paragraph > count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = "".join(letter.lower() for letter in re.split(r"[.,?!'\"]", word, maxsplit=1)[0])
    return count == num_paragraphs and word == first_word.lower()


def placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, pattern(marker.lower())), text.lower()) is not None


def bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


def highlights(text: str, num_highlights: int) -> bool:
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    filled = [mark for mark in single if mark.strip("*").strip()]
    filled += [mark for mark in double if mark.removeprefix("**").removesuffix("**").strip()]
    return len(filled) >= num_highlights


def sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """A section begins with the marker, which is a regular expression, and a number."""
    return len(re.split(rf"\s?{pattern(section_spliter.strip())}\s?\d+\s?", text)) - 1 >= num_sections


def json_format(text: str) -> bool:
    """Accepts JSON as Python reads it, including NaN. A Markdown fence around it is removed."""
    try:
        json.loads(_strip_fences(text))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply for the parser
        return False
    return True


def _strip_fences(text: str) -> str:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def title(text: str) -> bool:
    return any(mark.lstrip("<").rstrip(">").strip() for mark in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """There are two parts between ******. Empty parts are allowed only at the ends."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return compare_counts(count_capital_words(text), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and detect_language(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and detect_language(text) in ("en", None)


def no_comma(text: str) -> bool:
    return "," not in text


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


OFFICIAL: dict[str, Check] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": no_forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": sentences,
    "length_constraints:number_paragraphs": paragraphs,
    "length_constraints:number_words": words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph,
    "detectable_content:number_placeholders": placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


# -- corrected ------------------------------------------------------------------------------------------------------


def _keywords_exist(text: str, keywords: list[str]) -> bool:
    return all(count_whole_words(keyword, text) for keyword in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compare_counts(count_whole_words(keyword.strip(), text), relation, frequency)


def _no_forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(count_whole_words(word, text) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Counts the character that the row names, even if it is not a letter."""
    return compare_counts(text.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(text: str, language: str) -> bool:
    return detect_language(text) == language


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= num_placeholders


def _bullet_lists(text: str, num_bullets: int) -> bool:
    return count_bullets(text) == num_bullets


def _constrained_response(text: str) -> bool:
    return text.strip().strip("\"'*") in ANSWERS


def _highlights(text: str, num_highlights: int) -> bool:
    """Bold text counts once. The star of a bullet does not open a highlight."""
    return len(re.findall(r"(\*{1,2})(?=\S)[^\n*]*\w[^\n*]*\1", text)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Each marker must start a line and have text after its number."""
    marker = rf"^[\W_]*{re.escape(section_spliter.strip())}\s?\d+"
    return sum(bool(re.search(r"\w", part)) for part in re.split(marker, text, flags=re.MULTILINE)[1:]) >= num_sections


def _json_format(text: str) -> bool:
    return is_strict_json(_strip_fences(text))


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """Text must follow the repeated prompt."""
    return repeat_prompt(text, prompt_to_repeat) and len(text.strip()) > len(prompt_to_repeat.strip())


def _ends_with(text: str, end_phrase: str) -> bool:
    """Text must precede the phrase."""
    return ends_with(text, end_phrase) and len(text.strip().strip('"')) > len(end_phrase.strip())


def _english_capital(text: str) -> bool:
    return text.isupper() and detect_language(text) == "en"


def _english_lowercase(text: str) -> bool:
    return text.islower() and detect_language(text) == "en"


def _quotation(text: str) -> bool:
    return quotation(text) and bool(text.strip().strip('"').strip())


CORRECTED: dict[str, Check] = {
    **OFFICIAL,
    "keywords:existence": _keywords_exist,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _no_forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:number_bullet_lists": _bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json_format,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quotation,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
}
RULES = {"official": OFFICIAL, "corrected": CORRECTED}


def check_strictly(text: str, ids: list[str], arguments: list[dict[str, Any]], rules: str = "official") -> list[bool]:
    """Return whether the unchanged reply follows each instruction."""
    checks = RULES[rules]
    return [bool(text.strip()) and checks[name](text, **given) for name, given in zip(ids, arguments, strict=True)]


def check_loosely(text: str, ids: list[str], arguments: list[dict[str, Any]], rules: str = "official") -> list[bool]:
    """Return whether one of the variants of the reply (see `reply_variants`) follows each instruction."""
    verdicts = [check_strictly(variant, ids, arguments, rules) for variant in reply_variants(text)]
    return [any(verdict) for verdict in zip(*verdicts, strict=True)]


def reply_variants(text: str) -> list[str]:
    """Return eight variants of a reply: without the first line, the last, both or neither, with and without stars."""
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [variant for part in parts for variant in (part, part.replace("*", ""))]
