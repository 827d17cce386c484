"""Files of one JSON object a line, as users and models write them: what a line is, and what is wrong with one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from agentrl.core.text import well_formed

UTF_8 = "utf-8-sig"  # of files that users bring: Windows puts a mark of the byte order before the text
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # also the first half of a whole pair


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and content of every line that is not blank.

    Not str.splitlines(): a JSON string may hold the other line separators of Unicode (U+2028, U+0085) as they are.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def read_json(text: str) -> Any:
    """What a text of JSON holds, with U+FFFD for each half of a surrogate pair. Raises as json.loads does."""
    content = json.loads(text)
    return well_formed(content) if _HALF.search(text) else content


def explain_json(error: ValueError | RecursionError) -> str:
    """Why json.loads takes a text for no JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{place}, {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number too long"
