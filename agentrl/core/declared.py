"""Classes and functions that are named in a text, so that what names them need not import them."""

from __future__ import annotations

import importlib
from typing import Any


def declared(name: str) -> Any:
    """What "package.module:name" stands for; the module is imported now."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
