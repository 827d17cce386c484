"""Keeps secrets out of files: masks them in what a run writes, and refuses them in values that a user passes.

A secret is the value of an environment variable with a telling name (OPENAI_API_KEY, HF_TOKEN), a text with the form of
a well-known kind of key, or user:password in an address.
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
SHORTEST = 8  # characters of a secret; a short value such as 'true' is not one


def masker() -> Callable[[str], str]:
    """Return a function that replaces every secret in a text by `<the name of its variable>`, or by `<secret>`."""
    found = [  # a path to a file with a key is not a secret
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
    """Replace the secrets in a text."""
    return masker()(text)


def refuse_secrets(values: Any, where: str = "") -> None:
    """Raise UserError if a text in a configuration, mapping or list holds a secret. The message does not repeat it."""
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
            "environment variable, and give the variable's name to a key such as judge.api_key_env=OPENAI_API_KEY"
        )


class MaskedStream:
    """Wraps a text stream, and masks the secrets in what is written. All else passes through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without secrets. A secret must arrive in one piece, as it does in lines and tracebacks."""
        self._stream.write(mask_secrets(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_streams() -> None:
    """Mask secrets in standard output and error of this process from now on."""
    sys.stdout = cast(TextIO, MaskedStream(sys.stdout))
    sys.stderr = cast(TextIO, MaskedStream(sys.stderr))
