"""What the files of tool-use benches have in common."""

from __future__ import annotations

from agentrl.errors import UserError

MAX_ROW_BYTES = 4_000_000  # a hundred times an ordinary row of FTRL or ToolHop


def limit_row(size: int, where: str) -> None:
    """Raise UserError for a row that no model could read; `where` names file and row."""
    if size > MAX_ROW_BYTES:
        raise UserError(
            f"{where} has {size:,} bytes, more than {MAX_ROW_BYTES:,}; rows may have run together: mend or remove it"
        )
