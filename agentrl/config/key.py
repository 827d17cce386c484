"""How a key of the configuration is declared."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def key(doc: str) -> Any:
    """A required key with its one-sentence documentation; its value stands in conf/."""
    return field(metadata={"doc": doc})
