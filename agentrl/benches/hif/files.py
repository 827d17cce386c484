"""Reads the suites' files: JSON lists, or one JSON object per line. Errors name the file, the row and the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from agentrl.benches.rows import read_text
from agentrl.core.errors import UserError
from agentrl.core.jsonl import explain_json, numbered_lines, read_json

SUFFIXES = (".json", ".jsonl")


def find_files(path: str, names: tuple[str, ...]) -> dict[str, Path]:
    """Find the files `names` (with one of SUFFIXES) in the directory `path`, by name. {"": path} if `path` is a file.

    Raises UserError if the directory has none of them.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return {"": place}
    found = {name: file for name in names for suffix in SUFFIXES if (file := place / f"{name}{suffix}").is_file()}
    if not found:
        wanted = " or ".join(f"{name}.jsonl" for name in names)
        raise UserError(f"bench.path: {place} has no {wanted}; give the suite's directory or one of its files")
    return found


class Row:
    """One row of a file, with the checks of its fields. Each check raises UserError."""

    def __init__(self, file: Path, number: int, content: Any) -> None:
        self.file, self.number = file, number
        if not isinstance(content, dict):
            self.content: dict[str, Any] = {}
            self.refuse("whole row", f"expected an object, got {type(content).__name__}")
        self.content = content

    def refuse(self, field: str, reason: str) -> NoReturn:
        raise UserError(
            f"bench.path: {self.file}, row {self.number} (counted from 0), {field}: {reason}; mend or remove it"
        )

    def get(self, field: str, kind: type | tuple[type, ...], what: str) -> Any:
        """Return the value of `field`, which must exist and be of type `kind` (`what` in words)."""
        if field not in self.content:
            self.refuse(field, "missing")
        value = self.content[field]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            self.refuse(field, f"expected {what}, got {type(value).__name__}")
        return value

    def text(self, field: str) -> str:
        """Return the string of `field`, which must not be empty."""
        value: str = self.get(field, str, "text")
        if not value.strip():
            self.refuse(field, "empty")
        return value

    def messages(self, field: str = "messages") -> tuple[dict[str, str], ...]:
        """Return chat messages. The last one must be the user's; a system prompt must be the first."""
        messages = self.get(field, list, "a list of messages")
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
                self.refuse(field, "expected messages with the role system, user or assistant")
            if not isinstance(message.get("content"), str):
                self.refuse(field, "expected messages with text as content")
        if not messages or messages[-1]["role"] != "user":
            self.refuse(field, "the last message is not the user's")
        if any(message["role"] == "system" for message in messages[1:]):
            self.refuse(field, "a system message is not the first message")
        return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def rows_of(file: Path) -> Iterator[Row]:
    """Yield every row of a JSON list or of a jsonl file. Empty lines do not count."""
    count = 0
    for number, content in enumerate(_contents(file, read_text(file, "give the suite's file"))):
        count += 1
        yield Row(file, number, content)
    if not count:
        raise UserError(f"bench.path: {file} has no rows; give the suite's file")


def _contents(file: Path, text: str) -> Iterator[Any]:
    if text.lstrip().startswith("["):
        try:
            yield from read_json(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"bench.path: {file} is not a complete JSON list ({explain_json(error)}); download it again"
            ) from error
        return
    for number, (_, line) in enumerate(numbered_lines(text)):
        try:
            content = read_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"bench.path: {file}, row {number} (counted from 0) is not complete JSON "
                f"({explain_json(error)}); mend or remove it"
            ) from error
        yield content
