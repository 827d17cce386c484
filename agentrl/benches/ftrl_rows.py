"""Reads FTRL's jsonl files and MatchTIR's parquet files, checks every row, and divides rows into splits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.benches.rows import checks_of, limit_row, without_padding
from agentrl.config.benches import Ftrl
from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8, explain_json, read_json
from agentrl.schemas.plain import plain_tool

SUFFIXES = (".jsonl", ".parquet")
SPLITS = ("train", "test")
QUESTION = "\nQuestion: "


@dataclass(frozen=True)
class Row:
    """One question. `golds` maps tool names to the results that their calls should return, in the file's order."""

    id: str
    messages: tuple[dict[str, str], ...]
    question: str
    answer: str
    tools: tuple[dict[str, Any], ...]
    sources: dict[str, str]
    golds: dict[str, list[str]]
    data_source: str
    split: str
    ground_truth: tuple[tuple[str, dict[str, Any]], ...]  # MatchTIR's reference calls; empty in FTRL's own files

    @property
    def functions(self) -> dict[str, dict[str, Any]]:
        """The tools by name, with plain parameters."""
        return {tool["function"]["name"]: plain_tool(tool["function"]) for tool in self.tools}


def load_parts(config: Ftrl) -> dict[str, list[Row]]:
    """Return the rows of each split. If there is only one split, it is divided; test rows need `train_on_test`."""
    files = split_files(Path(config.path))
    if len(files) == len(SPLITS):
        return {split: load_rows(file) for split, file in files.items()}
    rows = load_rows(files[""])
    parts = {split: [row for row in rows if (row.split == "test") == (split == "test")] for split in SPLITS}
    if all(parts.values()) or (not parts["train"] and not config.train_on_test):
        return parts
    return divide(rows, config.test_fraction, config.data_seed)


def divide(rows: list[Row], test_fraction: float, data_seed: int) -> dict[str, list[Row]]:
    """Divide rows into splits: the same share of every data source, and no question in both. Keeps the file's order."""
    sources: dict[str, list[str]] = {}
    for question, source in {row.question: row.data_source for row in rows}.items():
        sources.setdefault(source, []).append(question)
    test: set[str] = set()
    for source, questions in sorted(sources.items()):
        count = min(max(round(test_fraction * len(questions)), 1), max(len(questions) - 1, 1))
        test |= set(random.Random(f"ftrl/{source}/{data_seed}").sample(questions, count))
    return {split: [row for row in rows if (row.question in test) == (split == "test")] for split in SPLITS}


def refuse_contamination(parts: dict[str, list[Row]], path: str) -> None:
    """Raise UserError if a test row is among the training rows, or if there are no training rows."""
    way_out = "set bench.train_on_test=true to train on test rows"
    if not parts["train"]:
        files = "give a directory with FTRL's train and test files"
        raise UserError(f"bench.path: {path} has only test rows; {files}, or {way_out}")
    held_out = {row.question for row in parts["test"]}
    for row in parts["train"]:
        if row.split == "test" or row.question in held_out:
            raise UserError(f"bench.path: {path}, training row {row.id} is a test row; remove it, or {way_out}")


def require_file(path: str) -> Path:
    """Return the file whose rows transcripts refer to. Raises UserError for a directory."""
    if Path(path).is_dir():
        raise UserError(f"bench.path: {path} is a directory; give the file whose rows the transcripts refer to")
    return Path(path)


def split_files(path: Path) -> dict[str, Path]:
    """Return {"train": file, "test": file} of a directory, or {"": file} if there is only one file."""
    if not path.is_dir():
        return {"": path}
    files: dict[str, Path] = {}
    for split in SPLITS:
        found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise UserError(f"bench.path: {path} has both {names}; remove one of them, or give a file")
        if found:
            files[split] = found[0]
    if not files:
        names = ", ".join(f"{split}{suffix}" for split in SPLITS for suffix in SUFFIXES)
        raise UserError(f"bench.path: {path} has none of {names}; give FTRL's directory or one of its files")
    return files if len(files) == len(SPLITS) else {"": next(iter(files.values()))}


def load_rows(path: Path) -> list[Row]:
    """Read all rows of a jsonl or parquet file. Errors name the file, the line (or parquet row) and the field."""
    rows = [row_of(entry, f"{path.stem}-{index}", where) for index, where, entry in _entries(path)]
    if not rows:
        raise UserError(f"bench.path: {path} has no rows; give FTRL's jsonl or MatchTIR's parquet file")
    return rows


def _entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield the 0-based index, the place for errors and the content of every row."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"bench.path: cannot read {path} ({error.strerror}); give FTRL's file or directory") from error
    if path.suffix.lower() == ".parquet":
        yield from _parquet_entries(path)
        return
    row = 0
    for index, line in enumerate(content.split(b"\n")):
        if not line.strip():
            continue
        where = f"bench.path: {path}, line {index + 1} (row {row})"
        limit_row(len(line), where)
        try:
            entry = read_json(line.decode(UTF_8 if index == 0 else "utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 (byte {error.start}); convert or download the file again") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not complete JSON ({explain_json(error)}); download the file again") from error
        yield row, where, entry
        row += 1


def _parquet_entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        entries = pyarrow.parquet.read_table(path).to_pylist(maps_as_pydicts="strict")
    except (ArrowException, OSError, KeyError) as error:  # KeyError: a map has a key twice
        raise UserError(f"bench.path: {path} is not a complete parquet file; download it again") from error
    for index, entry in enumerate(entries):
        where = f"bench.path: {path}, row {index}"
        limit_row(sum(len(value) for value in entry.values() if isinstance(value, str)), where)
        yield index, where, {column: without_padding(value) for column, value in entry.items()}


def row_of(entry: Any, name: str, where: str) -> Row:
    """Check one row and return it."""
    need = checks_of(where)

    def decoded(field: str, value: Any) -> Any:
        try:
            return read_json(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, {field}: bad JSON ({explain_json(error)}); mend or remove the row") from error

    need(isinstance(entry, dict), "whole row", "expected an object")
    for field in ("messages", "tools", "codes", "unsolved_set", "answer"):
        need(field in entry, field, "missing")
    messages, tools, codes, golds = (decoded(f, entry[f]) for f in ("messages", "tools", "codes", "unsolved_set"))

    fit = isinstance(messages, list) and all(isinstance(m, dict) for m in messages) and len(messages) > 0
    fit = fit and all(isinstance(m.get(part), str) for m in messages for part in ("role", "content"))
    need(fit, "messages", "expected a list of messages with role and content")
    asked = messages[-1]["role"] == "user" and QUESTION in messages[-1]["content"]
    need(asked, "messages", f"the last is not a user message with a line {QUESTION.strip()!r}")
    need(isinstance(entry["answer"], str), "answer", f"expected a string, got {type(entry['answer']).__name__}")

    fit = isinstance(codes, dict) and all(isinstance(source, str) for source in codes.values())
    need(fit, "codes", "expected an object of tool name and Python source")
    names: set[str] = set()
    need(isinstance(tools, list) and len(tools) > 0, "tools", "expected a non-empty list")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        function = function if isinstance(function, dict) else {}
        fit = isinstance(function.get("name"), str) and isinstance(function.get("parameters"), dict)
        need(fit, "tools", "expected functions with a name and parameters")
        need(function["name"] not in names, "tools", f"the name {function['name']} occurs twice")
        need(function["name"] in codes, "codes", f"no source for the tool {function['name']}")
        names.add(function["name"])

    fit = isinstance(golds, dict) and all(isinstance(answers, list) for answers in golds.values())
    need(fit, "unsolved_set", "expected an object of tool name and list of results")
    need(any(golds.values()), "unsolved_set", "has no results")
    for tool_name, answers in golds.items():
        need(tool_name in names, "unsolved_set", f"there is no tool {tool_name}")
        need(all(isinstance(answer, str) for answer in answers), "unsolved_set", f"{tool_name}: expected strings")

    calls = decoded("ground_truth", entry.get("ground_truth")) or []
    need(isinstance(calls, list), "ground_truth", "expected a list of calls")
    for call in calls:
        fit = isinstance(call, dict) and call.get("name") in names and isinstance(call.get("parameters"), dict)
        need(fit, "ground_truth", "expected calls of the row's tools, with name and parameters")
    return Row(
        id=f"ftrl-{name}",
        messages=tuple({"role": m["role"], "content": m["content"]} for m in messages),
        question=messages[-1]["content"].split(QUESTION, 1)[1],
        answer=entry["answer"],
        tools=tuple(tools),
        sources=codes,
        golds=golds,
        data_source=str(entry.get("data_source") or "self"),
        split=str(entry.get("split")),
        ground_truth=tuple((call["name"], call["parameters"]) for call in calls),
    )
