"""Refuses values. Every refusal has one form: the key, its value, and what the value must be."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentrl.core.errors import UserError
from agentrl.core.gguf import cache_folder


def require(condition: bool, key: str, value: Any, rule: str) -> None:
    """Raise UserError unless `condition` holds. `rule` says what the value must be, and so what to change.

    NaN fails every comparison, so a range check refuses it.
    """
    if not condition:
        raise UserError(f"{key}={format_value(value)}: {rule}")


def expand_home(path: str) -> str:
    """Return `path` with `~` resolved. If no home directory has that name, the path becomes absolute."""
    found = os.path.expanduser(path)
    return os.path.abspath(found) if found.startswith("~") else found


def require_python_file(key: str, path: str) -> None:
    """Raise UserError if `path` is not a Python file on this disk."""
    file = Path(path).expanduser()
    rule = "no such Python file; give one (docs/extending.md has examples)"
    require(file.suffix == ".py" and file.is_file(), key, path, rule)


def require_base(path: str) -> None:
    """Raise UserError if the adapter at `path` was trained on a directory that is no longer there.

    Another damage of the adapter's file is reported when it is loaded.
    """
    file = Path(path).expanduser() / "adapter_config.json"
    try:
        base = str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    place = Path(base).expanduser()
    if base.startswith((".", "/", "~")) and not place.exists() and place.parent != cache_folder():
        raise UserError(
            f"model.path={path}: the base of this adapter, {base}, is gone; write its new place into "
            f"base_model_name_or_path of {file}"
        )


def is_web_address(url: str) -> bool:
    """Whether a text is http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:  # the port is not a number, or a bracket is missing
        return False


def format_value(value: Any) -> str:
    """Format a value for a refusal: on one line, and without the password of an address."""
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    plain = re.sub(r"(?<=://)[^/\s]*@", "***@", value)
    return plain if plain.isprintable() and plain else repr(plain)
