"""Repairs text for later steps: JSON can hold half a surrogate pair, but UTF-8 and tokenizers cannot."""

from __future__ import annotations

import re
from typing import Any

MAX_DEPTH = 100
_HALVES = re.compile("[\ud800-\udfff]")


def replace_surrogates(value: Any) -> Any:
    """Copy `value` with U+FFFD in place of each half of a surrogate pair, in every string and key at any depth."""
    whole = [value]
    holders: list[Any] = [whole]
    while holders:
        holder = holders.pop()
        for key, item in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(item, dict):
                holder[key] = {_replace_in_text(name): inner for name, inner in item.items()}
                holders.append(holder[key])
            elif isinstance(item, list):
                holder[key] = list(item)
                holders.append(holder[key])
            elif isinstance(item, str):
                holder[key] = _replace_in_text(item)
    return whole[0]


def is_too_deep(value: Any) -> bool:
    """Whether a value nests deeper than MAX_DEPTH, which chat templates and files could not follow."""
    level = [value]
    for _ in range(MAX_DEPTH):
        holders = [item for item in level if isinstance(item, dict | list)]
        if not holders:
            return False
        level = [inner for one in holders for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def _replace_in_text(text: Any) -> Any:
    return _HALVES.sub("\ufffd", text) if isinstance(text, str) and not text.isascii() else text
