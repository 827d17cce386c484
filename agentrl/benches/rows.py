"""Helpers to read the files of benches: limits, checks, the form of rows, and rows that a transcript names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from agentrl.chat.transcripts import BadTranscript
from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8

MAX_ROW_BYTES = 4_000_000  # a hundred times the size of an ordinary row of FTRL or ToolHop
Found = TypeVar("Found")


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


@dataclass(frozen=True)
class RowIndex(Generic[Found]):
    """Finds the row that a transcript names by "row" (and "suite" if there are several), or by the "id" of a task."""

    bench: str
    by_number: Mapping[tuple[str, int], Found]  # (suite, number) -> row
    by_id: Mapping[str, Found]

    def find(self, record: Mapping[str, Any]) -> Found:
        """Return the row. Raises BadTranscript."""
        if "row" not in record and "id" in record:
            if str(record["id"]) not in self.by_id:
                raise BadTranscript(f"id {json.dumps(record['id'])}: {self.bench} has no such row")
            return self.by_id[str(record["id"])]
        suites, suite = sorted({suite for suite, _ in self.by_number}), record.get("suite")
        if suite is None and len(suites) > 1:
            raise BadTranscript(f'no suite: {self.bench} has rows of {", ".join(suites)}; add "suite"')
        number, row = record.get("row"), None
        if isinstance(number, int) and not isinstance(number, bool) and isinstance(suite, str | None):
            row = self.by_number.get((suite or suites[0], number))
        if row is None:
            within = "" if suite is None else f" of suite {json.dumps(suite)}"
            raise BadTranscript(f"row {json.dumps(number)}{within}: {self.bench} has no such row")
        return row
