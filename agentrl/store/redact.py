"""Secrets stay in the environment: what a run writes is searched for them, what a user passes as a value is refused.

A secret is the value of an environment variable named like one (OPENAI_API_KEY, HF_TOKEN), text that has the form of a
well-known kind of key, or user:password in an address.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TextIO, cast

from pydantic import BaseModel

from agentrl.core.errors import UserError

NAMES = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
FORMS = (
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|xox[abprs]-[\w-]{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
SHORTEST = 8  # characters: 'true' in a variable named like a secret is none


def masker() -> Callable[[str], str]:
    """A function that replaces every secret in a text by `<the name of its variable>`, or `<secret>`."""
    found = [  # a path to a key is none
        (value, name)
        for name, value in os.environ.items()
        if NAMES.search(name) and len(value.strip()) >= SHORTEST and not os.path.exists(value)
    ]
    return _masker(tuple(sorted(found, key=lambda pair: -len(pair[0]))))


@lru_cache(maxsize=8)
def _masker(secrets: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    names = dict(secrets)
    pattern = re.compile("|".join([*(re.escape(value) for value, _ in secrets), FORMS]))
    return lambda text: pattern.sub(lambda found: f"<{names.get(found[0], 'secret')}>", text)


def mask_secrets(text: str) -> str:
    """`text` without secrets."""
    return masker()(text)


def refuse_secrets(values: Any, where: str = "") -> None:
    """Raise UserError if a text in a configuration, mapping or list holds a secret; it is not repeated."""
    if isinstance(values, BaseModel):
        values = values.model_dump()
    if isinstance(values, Mapping):
        for key, value in values.items():
            refuse_secrets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_secrets(value, where)
    elif isinstance(values, str) and mask_secrets(values) != values:
        raise UserError(
            f"{where or 'the command line'} holds a secret, and values are written to files; export it as an "
            "environment variable, and name that variable where a key asks for it (judge.api_key_env=OPENAI_API_KEY)"
        )


class MaskedStream:
    """A text stream that writes to another without secrets; in everything else it is the other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """A secret is recognised where it arrives in one piece, as lines and tracebacks do."""
        self._stream.write(mask_secrets(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_streams() -> None:
    """From here on, standard output and error of this process carry no secrets."""
    sys.stdout = cast(TextIO, MaskedStream(sys.stdout))
    sys.stderr = cast(TextIO, MaskedStream(sys.stderr))
