"""Checks VerIH's 24 constraints, by the official rules and by our corrected rules.


OFFICIAL maps the name of a function to a check of the answer and the row's arguments. CORRECTED differs where an answer
can meet the official rule without meeting the constraint (docs/hif.md lists each case). The official rules accept empty
answers.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable

from agentrl.benches.hif.base import THINK_CLOSE, answer_of
from agentrl.benches.hif.text import count_bullets, count_sentences, count_whole_words, is_strict_json

Check = Callable[..., bool]


def satisfies_quantifier(count: int, quantifier: str, bound: int, tolerance: int = 0) -> bool:
    """Whether `count` is "at least", "at most" or "around" `bound`; around allows `tolerance`.

    As upstream, any other quantifier is never met.
    """
    if quantifier == "around":
        return abs(count - bound) <= tolerance
    return (quantifier == "at least" and count >= bound) or (quantifier == "at most" and count <= bound)


# -- as the official code has it -------------------------------------------------------------------------------------


def keywords(text: str, keyword_list: list[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keyword_list)


def keyword_frequency(text: str, word: str, n: int) -> bool:
    """The whole word occurs exactly n times, in any case."""
    return re.findall(r"\w+", text.lower()).count(word.lower()) == n


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(word.lower() in text.lower() for word in forbidden_words)


def letter_frequency(text: str, letter: str, n: int) -> bool:
    """The letter occurs exactly n times, in the given case."""
    return text.count(letter) == n


def paragraph_count(text: str, n: int) -> bool:
    """There are n parts between * * *, and none is empty. Blanks around lines do not matter."""
    parts = "\n".join(line.strip() for line in text.splitlines()).split("* * *")
    return len(parts) == n and all(part.strip() for part in parts)


def word_constraint(text: str, n: int, quantifier: str) -> bool:
    return satisfies_quantifier(len(text.split()), quantifier, n, max(round(n * 0.1), 1))


def sentence_constraint(text: str, n: int, quantifier: str) -> bool:
    """A sentence ends at . or ? before white space, but not after words like 'e.g.' or 'Mr.'; ! does not end one."""
    return satisfies_quantifier(len(re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", text)), quantifier, n, 1)


def paragraphs(text: str, n: int, i: int, first_word: str) -> bool:
    """There are n parts between empty lines, including empty ones. Part i (0: the last) starts with `first_word`."""
    parts = text.split("\n\n")
    return len(parts) == n and i <= n and parts[i - 1].strip().startswith(first_word)


def postscript(text: str, postscript_marker: str) -> bool:
    """The marker is anywhere, with text after it."""
    at = text.find(postscript_marker)
    return at >= 0 and len(text[at:].strip()) > len(postscript_marker)


def placeholders(text: str, n: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= n


def bullet_points(text: str, n: int) -> bool:
    """There are n lines that start with * or -, whatever follows."""
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == n


def title(text: str) -> bool:
    return re.search(r"<<.*?>>", text) is not None


def choice(text: str, options: str | list[str]) -> bool:
    """The answer is part of an option. In the data `options` is a string, so an option is one of its characters."""
    return any(text in option for option in options)


def highlighted_sections(text: str, n: int) -> bool:
    return len(re.findall(r"\*.*?\*", text)) >= n


def sections(text: str, n: int, section_splitter: str) -> bool:
    """There are n parts between splitters. Text before the first splitter counts as a part."""
    parts = text.split(section_splitter)
    return len(parts) - (parts[0] == "") == n


def json_format(text: str) -> bool:
    """The text is JSON as Python reads it, including NaN."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply for the parser
        return False
    return True


def repeat_prompt(text: str, original_prompt: str) -> bool:
    return text.startswith(original_prompt)


def two_responses(text: str) -> bool:
    """There is exactly one ******, with different text on its two sides. One side may be empty."""
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def uppercase(text: str) -> bool:
    return text == text.upper()


def lowercase(text: str) -> bool:
    return text == text.lower()


def frequency_capital_words(text: str, n: int, quantifier: str) -> bool:
    """Counts words made only of A to Z. 'around' means exactly."""
    return satisfies_quantifier(len(re.findall(r"\b[A-Z]+\b", text)), quantifier, n)


def end(text: str, end_phrase: str) -> bool:
    return text.endswith(end_phrase)


def quotation(text: str) -> bool:
    return text.startswith('"') and text.endswith('"')


def no_commas(text: str) -> bool:
    return "," not in text


OFFICIAL: dict[str, Check] = {
    "verify_keywords": keywords,
    "verify_keyword_frequency": keyword_frequency,
    "validate_forbidden_words": forbidden_words,
    "verify_letter_frequency": letter_frequency,
    "verify_paragraph_count": paragraph_count,
    "validate_word_constraint": word_constraint,
    "verify_sentence_constraint": sentence_constraint,
    "validate_paragraphs": paragraphs,
    "verify_postscript": postscript,
    "validate_placeholders": placeholders,
    "verify_bullet_points": bullet_points,
    "validate_title": title,
    "validate_choice": choice,
    "validate_highlighted_sections": highlighted_sections,
    "validate_sections": sections,
    "validate_json_format": json_format,
    "validate_repeat_prompt": repeat_prompt,
    "validate_two_responses": two_responses,
    "validate_uppercase": uppercase,
    "validate_lowercase": lowercase,
    "validate_frequency_capital_words": frequency_capital_words,
    "validate_end": end,
    "validate_quotation": quotation,
    "validate_no_commas": no_commas,
}


# -- corrected: `text` is stripped and not empty --------------------------------------------------------------------


def _keywords(text: str, keyword_list: list[str]) -> bool:
    return all(count_whole_words(keyword, text) for keyword in keyword_list)


def _sentence_constraint(text: str, n: int, quantifier: str) -> bool:
    return satisfies_quantifier(count_sentences(text), quantifier, n, 1)


def _paragraphs(text: str, n: int, i: int, first_word: str) -> bool:
    """No paragraph is empty, and `first_word` is a whole word."""
    parts = [part.strip() for part in text.split("\n\n")]
    return (
        len(parts) == n and all(parts) and 1 <= i <= n and bare_first_word(parts[i - 1]) == bare_first_word(first_word)
    )


def bare_first_word(text: str) -> str:
    """Return the first word, without the punctuation around it."""
    return (text.split() or [""])[0].strip(string.punctuation)


def _placeholders(text: str, n: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= n


def _bullet_points(text: str, n: int) -> bool:
    return count_bullets(text) == n


def _title(text: str) -> bool:
    return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text) is not None


def _choice(text: str, options: str | list[str]) -> bool:
    """The answer is one of the options, whatever its case and the punctuation around it."""
    return normalise(text) in {normalise(option) for option in options_of(options)}


def options_of(options: str | list[str]) -> list[str]:
    """Split the options of 'yes/no/maybe', 'a), b), c), d)' or "I know or I don't know"."""
    return options if isinstance(options, list) else re.split(r"\s*/\s*|\s*,\s*|\s+or\s+", options)


def normalise(text: str) -> str:
    return " ".join(text.replace("’", "'").lower().split()).strip(string.punctuation + " ")


def _highlighted_sections(text: str, n: int) -> bool:
    """Bold text counts once. The star of a bullet does not open a highlight."""
    return len(re.findall(r"(\*{1,2})(?=\S)[^\n*]*\w[^\n*]*\1", text)) >= n


def _sections(text: str, n: int, section_splitter: str) -> bool:
    """There are n splitters, each with text after it. An introduction does not count as a section."""
    parts = text.split(section_splitter)[1:]
    return len(parts) == n and all(re.search(r"\w", part) for part in parts)


def _repeat_prompt(text: str, original_prompt: str) -> bool:
    """Text must follow the repeated prompt."""
    prompt = original_prompt.strip()
    return text.startswith(prompt) and bool(re.search(r"\w", text[len(prompt) :]))


def _two_responses(text: str) -> bool:
    return two_responses(text) and all(part.strip() for part in text.split("******"))


def _uppercase(text: str) -> bool:
    return text.isupper()


def _lowercase(text: str) -> bool:
    return text.islower()


def _end(text: str, end_phrase: str) -> bool:
    """Text must precede the phrase."""
    phrase = end_phrase.strip()
    return text.endswith(phrase) and bool(re.search(r"\w", text.removesuffix(phrase)))


def _quotation(text: str) -> bool:
    return quotation(text) and bool(text.strip('"').strip())


CORRECTED: dict[str, Check] = {
    **OFFICIAL,
    "verify_keywords": _keywords,
    "verify_sentence_constraint": _sentence_constraint,
    "validate_paragraphs": _paragraphs,
    "validate_placeholders": _placeholders,
    "verify_bullet_points": _bullet_points,
    "validate_title": _title,
    "validate_choice": _choice,
    "validate_highlighted_sections": _highlighted_sections,
    "validate_sections": _sections,
    "validate_json_format": is_strict_json,
    "validate_repeat_prompt": _repeat_prompt,
    "validate_two_responses": _two_responses,
    "validate_uppercase": _uppercase,
    "validate_lowercase": _lowercase,
    "validate_end": _end,
    "validate_quotation": _quotation,
}


def check(response: str, name: str, arguments: dict[str, object], rules: str = "official") -> bool:
    """Whether the answer, which is the text after the last `</think>`, meets the constraint.

    Without `</think>` the official rules check the whole reply. Our rules do not count the text of an open think block.
    """
    if rules == "official":
        return OFFICIAL[name](response.rsplit(THINK_CLOSE, 1)[-1].strip(), **arguments)
    answer = answer_of(response)
    return bool(answer) and CORRECTED[name](answer, **arguments)


def reward(response: str, name: str, arguments: dict[str, object], rules: str = "official") -> float:
    """Return 1 or 0. The official rules also need a complete think block somewhere in the reply."""
    thought = rules == "corrected" or re.search(r"<think>.*?</think>", response, flags=re.DOTALL) is not None
    return float(thought and check(response, name, arguments, rules))
