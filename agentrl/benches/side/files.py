"""Reads the data of side evaluations from the disk or the hub. A row with a mistake costs that row alone.

Files are JSON lists, JSON lines, tables with a header (.csv, .tsv), and Arrow or parquet tables.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from agentrl.benches.rows import MAX_ROW_BYTES, read_text
from agentrl.core.errors import UserError, first_line
from agentrl.core.jsonl import explain_json, numbered_lines, read_json

TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", *TABLES, ".arrow", ".parquet")
SHOWN = 3  # rows with a mistake that one message names
Made = TypeVar("Made")


class BadRow(ValueError):
    """A row that cannot be asked or graded. The message says what is wrong with it."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its fields. Each check raises BadRow."""

    source: str  # the file, or the part of the hub's dataset
    number: int  # counted from 0
    content: dict[str, Any]

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise BadRow(f"{name}: {reason}")

    def get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        """Return the value of a field, which must exist and be of type `kind` (`what` in words)."""
        if name not in self.content:
            self.refuse(name, "missing")
        value = self.content[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(name, f"expected {what}, got {type(value).__name__}")
        return value

    def text(self, name: str) -> str:
        """Return the text of a field, which must not be empty."""
        value: str = self.get(name, str, "text")
        if not value.strip():
            self.refuse(name, "empty")
        return value

    def optional(self, name: str) -> str:
        """Return the text of a field that may be missing, null or empty."""
        value = self.content.get(name)
        return value if isinstance(value, str) else ""


@dataclass
class Collected:
    """What rows were made into, and a word about each row with a mistake."""

    made: list[Any] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else the user has to know

    def add(self, rows: Iterable[Row | str], make: Callable[[Row], Made | None]) -> None:
        """Make something of every row. `make` returns None for a row that does not belong to the evaluation."""
        for row in rows:
            if isinstance(row, str):
                self.mistakes.append(row)
                continue
            try:
                item = make(row)
            except BadRow as error:
                self.mistakes.append(f"{row.source}, row {row.number} (counted from 0), {error}")
            else:
                self.made += [] if item is None else [item]

    def remarks(self) -> list[str]:
        """Return the notes, and a line about the rows with a mistake, if there are any."""
        if not self.mistakes:
            return self.notes
        count, more = len(self.mistakes), len(self.mistakes) - SHOWN
        shown = "; ".join(self.mistakes[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        return [*self.notes, f"{count} row{'s are' if count > 1 else ' is'} left out for a mistake: {shown}"]


def rows_of(file: Path, instead: str) -> Iterator[Row | str]:
    """Yield the rows of a file, or for a row that cannot be read a text that says why.

    `instead` says what to give where the file cannot be read. Raises UserError for the file as a whole.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"bench.path: {file} is none of {', '.join(SUFFIXES)}; {instead}")
    for number, content in enumerate(_contents(file, instead)):
        if isinstance(content, str):
            yield f"{file}, row {number} (counted from 0), {content}"
        elif isinstance(content, dict):
            yield Row(str(file), number, content)
        else:
            yield f"{file}, row {number} (counted from 0), expected an object, got {type(content).__name__}"


def _contents(file: Path, instead: str) -> Iterator[Any]:
    """Yield the content of each row; a text says what is wrong with it."""
    if file.suffix in (".arrow", ".parquet"):
        yield from _arrow_rows(file, instead)
        return
    text = read_text(file, instead)
    if file.suffix in TABLES:
        yield from _table_rows(text, TABLES[file.suffix])
    elif text.lstrip().startswith("["):
        try:
            yield from (one if not isinstance(one, str) else "expected an object, got text" for one in read_json(text))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"bench.path: {file} is no complete JSON list ({explain_json(error)}); {instead}"
            ) from error
    else:
        for _, line in numbered_lines(text):
            if len(line) > MAX_ROW_BYTES:
                yield f"has {len(line):,} characters, more than {MAX_ROW_BYTES:,}; line breaks may be missing"
                continue
            try:
                content = read_json(line)
            except (ValueError, RecursionError) as error:
                yield f"not complete JSON ({explain_json(error)})"
            else:
                yield "expected an object, got text" if isinstance(content, str) else content


def _table_rows(text: str, delimiter: str) -> Iterator[dict[str, Any] | str]:
    """Read a table as pandas does: quotes may hold line breaks, and a column that a short row lacks is empty."""
    csv.field_size_limit(MAX_ROW_BYTES)
    for content in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
        if None in content:
            yield "has more columns than the header"
        else:
            yield {name: value or "" for name, value in content.items()}


def _arrow_rows(file: Path, instead: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
        else:
            with pyarrow.memory_map(str(file)) as source:  # `datasets` writes streams
                table = pyarrow.ipc.open_stream(source).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"bench.path: cannot read {file} ({first_line(error)}); {instead}") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def not_on_hub(hub_id: str, error: Exception, part: str = "") -> UserError:
    """Return the refusal of a dataset that could not be loaded from the hub. `part` follows its name."""
    return UserError(f"bench.hub_id: cannot load {hub_id}{part} ({first_line(error)}); give a local copy as bench.path")


def hub_rows(hub_id: str, name: str | None, split: str, source: str, **how: Any) -> Iterator[Row]:
    """Yield the rows of one split of a dataset on the hub. `name` is its configuration. Raises UserError."""
    from datasets import load_dataset

    try:
        rows = load_dataset(hub_id, name, split=split, **how)
    except Exception as error:  # the hub, the network, the cache and the file formats raise many kinds of errors
        raise not_on_hub(hub_id, error, f", {name}" if name else "") from error
    for number, content in enumerate(rows):
        yield Row(source, number, dict(content))
