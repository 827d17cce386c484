"""What the files of benches have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8

MAX_ROW_BYTES = 4_000_000  # a hundred times an ordinary row of FTRL or ToolHop


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
    """Raise UserError for a row that no model could read; `where` names file and row."""
    if size > MAX_ROW_BYTES:
        raise UserError(
            f"{where} has {size:,} bytes, more than {MAX_ROW_BYTES:,}; rows may have run together: mend or remove it"
        )


def checks_of(where: str) -> Callable[[bool, str, str], None]:
    """need(condition, field, reason) for the row at `where`: a UserError that names file, row and field."""

    def need(condition: bool, field: str, reason: str) -> None:
        if not condition:
            raise UserError(f"{where}, {field}: {reason}; mend or remove the row")

    return need


def answers_by_tool(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The sub-answers that each tool's calls should give, from (tool name, sub-answer)."""
    golds: dict[str, list[str]] = {}
    for tool, answer in found:
        golds.setdefault(tool, []).append(answer)
    return golds


def without_padding(value: Any) -> Any:
    """A value of an Arrow table without the keys that are null, at every depth.

    Arrow gives every row the keys of all rows and null for those that it never had. A null of the row's own looks the
    same and goes as well; those in lists stay, for lists are not padded.
    """
    if isinstance(value, dict):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    return [without_padding(item) for item in value] if isinstance(value, list) else value
