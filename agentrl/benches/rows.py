"""What the files of benches have in common."""

from __future__ import annotations

from typing import Any

from agentrl.core.errors import UserError

MAX_ROW_BYTES = 4_000_000  # a hundred times an ordinary row of FTRL or ToolHop


def limit_row(size: int, where: str) -> None:
    """Raise UserError for a row that no model could read; `where` names file and row."""
    if size > MAX_ROW_BYTES:
        raise UserError(
            f"{where} has {size:,} bytes, more than {MAX_ROW_BYTES:,}; rows may have run together: mend or remove it"
        )


def without_padding(value: Any) -> Any:
    """A value of an Arrow table without the keys that are null, at every depth.

    Arrow gives every row the keys of all rows and null for those that it never had. A null of the row's own looks the
    same and goes as well; those in lists stay, for lists are not padded.
    """
    if isinstance(value, dict):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    return [without_padding(item) for item in value] if isinstance(value, list) else value
