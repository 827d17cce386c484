"""The one form in which a value is refused: the key, what it holds, and what it must be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentrl.core.errors import UserError


def require(condition: bool, key: str, value: Any, rule: str) -> None:
    """`rule` says what the value must be, and so what to change. NaN fails every comparison and is refused too."""
    if not condition:
        raise UserError(f"{key}={show(value)}: {rule}")


def home(path: str) -> str:
    """`path` with `~` resolved; a name that merely begins with it, and is nobody's home, becomes absolute."""
    found = os.path.expanduser(path)
    return os.path.abspath(found) if found.startswith("~") else found


def python_file(key: str, path: str) -> None:
    """Refuse what is no Python file on this disk."""
    file = Path(path).expanduser()
    require(file.suffix == ".py" and file.is_file(), key, path, "no such Python file (docs/extending.md has examples)")


def is_web_address(url: str) -> bool:
    """Whether a text is http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:  # a port that is no number, half a bracket
        return False


def show(value: Any) -> str:
    """A value in a refusal: on one line, and without the password that an address may carry."""
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    plain = re.sub(r"(?<=://)[^/\s]*@", "***@", value)
    return plain if plain.isprintable() and plain else repr(plain)
