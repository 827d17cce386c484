"""Helpers to read the files of benches: limits, checks and the form of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8

MAX_ROW_BYTES = 4_000_000  # a hundred times the size of an ordinary row of FTRL or ToolHop


def read_text(path: Path, instead: str) -> str:
    """Return the text of a bench's file. Raises UserError; `instead` says what to do where it cannot be read."""
    try:
        return path.read_text(encoding=UTF_8)
    except OSError as error:
        raise UserError(f"bench.path: cannot read {path} ({error.strerror}); {instead}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"bench.path: {path} is not UTF-8 (byte {error.start}); convert or download it again"
        ) from error


def limit_row(size: int, where: str) -> None:
    """Raise UserError for a row larger than MAX_ROW_BYTES, which no model could read. `where` names file and row."""
    if size > MAX_ROW_BYTES:
        raise UserError(
            f"{where} has {size:,} bytes, more than {MAX_ROW_BYTES:,}; line breaks may be missing: mend or remove it"
        )


def checks_of(where: str) -> Callable[[bool, str, str], None]:
    """Return need(condition, field, reason) for the row at `where`. It raises a UserError with file, row and field."""

    def need(condition: bool, field: str, reason: str) -> None:
        if not condition:
            raise UserError(f"{where}, {field}: {reason}; mend or remove the row")

    return need


def answers_by_tool(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Map each tool to the sub-answers that its calls should return, from pairs (tool name, sub-answer)."""
    golds: dict[str, list[str]] = {}
    for tool, answer in found:
        golds.setdefault(tool, []).append(answer)
    return golds


def without_padding(value: Any) -> Any:
    """Remove keys with null from a value of an Arrow table, at every depth.

    Arrow gives every row the keys of all rows, with null for the missing ones. A null that the row itself had looks the
    same and is removed, too. Nulls in lists stay, because Arrow does not pad lists.
    """
    if isinstance(value, dict):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    return [without_padding(item) for item in value] if isinstance(value, list) else value
