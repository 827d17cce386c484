"""Resolves names: the categories that a word of the configuration means, and the item that a record means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.benches.bfcl.data import MEMORY, MULTI_TURN, WEB_SEARCH, Entry
from agentrl.config.benches import BFCL_GROUPS


def expand_categories(words: Sequence[str]) -> tuple[str, ...]:
    """Return the categories that the words name, each once. Groups are replaced by their categories."""
    return tuple(dict.fromkeys(name for word in words for name in BFCL_GROUPS.get(word, (word,))))


def entry_of_record(
    record: Mapping[str, Any], categories: Sequence[str], entries: Callable[[str], list[Entry]]
) -> Entry:
    """Return the item that a record names. Raises ValueError if it names none."""
    name, row = record.get("id", record.get("row_id")), record.get("row")
    category = record.get("category")
    if category is not None:
        category = {"memory": MEMORY[0], "web_search": WEB_SEARCH[0]}.get(str(category), category)
        if category not in BFCL_GROUPS["all"]:
            raise ValueError(f"category: {category!r} is not a category of BFCL v4")
        categories = (category,)
    if isinstance(name, str):
        for found in candidates(name, categories):
            for entry in entries(found):
                if name in (entry.id, shared_id(entry)):
                    return entry
        raise ValueError(f"id: there is no item {name!r}")
    files = {MEMORY[0] if c in MEMORY else WEB_SEARCH[0] if c in WEB_SEARCH else c: c for c in reversed(categories)}
    if len(files) > 1:
        raise ValueError("row: several data files are configured; add `category`, or name the item by `id`")
    rows = entries(next(iter(files.values())))
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(rows):
        raise ValueError(f"row: expected a number from 0 to {len(rows) - 1}, got {row!r}")
    return rows[row]


def candidates(name: str, categories: Sequence[str]) -> list[str]:
    """List the categories that may have an id, the configured ones first."""
    ordered = dict.fromkeys((*categories, *MULTI_TURN, *MEMORY, *WEB_SEARCH))
    return [c for c in ordered if name.startswith(c.split("_")[0])]


def shared_id(entry: Entry) -> str:
    """Return the id in the data file. The memory backends share one file, and so do both kinds of web search."""
    for kind, names in (("memory", MEMORY), ("web_search", WEB_SEARCH)):
        if entry.category in names:
            return entry.id.replace(entry.category, kind, 1)
    return entry.id
