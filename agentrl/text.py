"""Text that every later step can take: JSON can hold half a surrogate pair, UTF-8 and tokenizers cannot."""

from __future__ import annotations

import re
from typing import Any

_HALVES = re.compile("[\ud800-\udfff]")


def well_formed(value: Any) -> Any:
    """The value with U+FFFD in place of each half of a surrogate pair, in every string and key of it."""
    if isinstance(value, str):
        return _HALVES.sub("\ufffd", value) if not value.isascii() else value
    if isinstance(value, dict):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    return [well_formed(item) for item in value] if isinstance(value, list) else value
