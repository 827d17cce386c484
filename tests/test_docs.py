"""The documentation site: `make site` checks links and anchors; here, that a reader can find every page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def pages(entry: Any) -> Iterator[str]:
    """File names at the leaves of mkdocs' navigation."""
    if isinstance(entry, str):
        yield entry
    for below in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages(below)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))
