"""Finds classes and functions by a name in text, so that the module with the name need not import them."""

from __future__ import annotations

import importlib
from typing import Any


def import_by_name(name: str) -> Any:
    """Import "package.module" and return its attribute, from a text "package.module:attribute"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
