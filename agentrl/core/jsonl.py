"""Reads files of one JSON object per line, as users and models write them, and explains lines that are not JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from agentrl.core.text import replace_surrogates

UTF_8 = "utf-8-sig"  # encoding of the user's files: Windows puts a byte-order mark before the text
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a surrogate pair; this also matches the halves of a complete pair


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the content of every line that is not blank.

    str.splitlines() would cut too often: a JSON string may hold other line separators of Unicode (U+2028, U+0085).
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def read_json(text: str) -> Any:
    """Parse a text of JSON. Half a surrogate pair becomes U+FFFD. Raises as json.loads does."""
    content = json.loads(text)
    return replace_surrogates(content) if _HALF.search(text) else content


def explain_json(error: ValueError | RecursionError) -> str:
    """Say in a few words why json.loads refused a text."""
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{place}, {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
