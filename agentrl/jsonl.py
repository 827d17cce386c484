"""Files of one JSON object a line, as users and models write them: what a line is, and what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Iterator


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and content of every line that is not blank.

    Not str.splitlines(): a JSON string may hold the other line separators of Unicode (U+2028, U+0085) as they are.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def flaw(error: ValueError | RecursionError) -> str:
    """Why json.loads takes a text for no JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{place}, {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number too long"
