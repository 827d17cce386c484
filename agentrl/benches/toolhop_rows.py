"""Reads ToolHop.json from the disk or the hub, checks every row, and divides the rows into splits."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.benches.rows import MAX_ROW_BYTES, answers_by_tool, checks_of, limit_row, read_text
from agentrl.config.benches import ToolHop
from agentrl.core.errors import UserError, first_line
from agentrl.core.jsonl import explain_json, read_json

HUB_FILE = "data/ToolHop.json"
_FIRST_DEF = re.compile(r"def\s+(\w+)")


@dataclass(frozen=True)
class Row:
    """One question with its hops in order. The lists have one entry per hop."""

    id: str
    question: str
    answer: str
    sub_questions: tuple[str, ...]
    sub_answers: tuple[str, ...]
    tools: tuple[dict[str, Any], ...]
    sources: dict[str, str]  # tool name -> source; the last source of a name wins, as upstream
    answer_type: str

    @property
    def golds(self) -> dict[str, list[str]]:
        """Tool name -> sub-answers that its calls should return."""
        return answers_by_tool(zip((tool["name"] for tool in self.tools), self.sub_answers, strict=True))


def divide(rows: list[Row], test_fraction: float, data_seed: int) -> dict[str, list[Row]]:
    """Divide rows into splits, in file order. Neither split is empty if there are two rows or more."""
    shuffled = random.Random(f"toolhop/{data_seed}").sample(range(len(rows)), len(rows))
    most = len(rows) if test_fraction == 1 else max(len(rows) - 1, 1)
    count = min(max(round(test_fraction * len(rows)), 1), most)
    test = set(shuffled[:count])
    return {
        "train": [row for i, row in enumerate(rows) if i not in test],
        "test": [row for i, row in enumerate(rows) if i in test],
    }


def find_file(config: ToolHop) -> Path:
    """Return `path`, or download the file from the hub. Raises UserError if that fails."""
    if config.path is not None:
        return Path(config.path)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.hub_id, HUB_FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:  # offline, or the repository is missing, gated or misspelt
        raise UserError(
            f"bench.hub_id: cannot download {HUB_FILE} of dataset {config.hub_id} ({first_line(error)}); "
            "give a local ToolHop.json as bench.path"
        ) from error


def load_rows(path: Path) -> list[Row]:
    """Read all rows of a ToolHop.json, which is a list of objects, or an object that maps ids to objects."""
    try:
        text = read_text(path, "give the path of ToolHop.json")
        size, data = len(text), read_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"bench.path: {path} is not complete JSON ({explain_json(error)}); download it again"
        ) from error
    entries = [{"id": key, **row} if isinstance(row, dict) else row for key, row in data.items()] \
        if isinstance(data, dict) else data  # fmt: skip
    if not isinstance(entries, list) or not entries:
        raise UserError(f"bench.path: {path} has no rows; give a list of ToolHop rows")
    rows = []
    for index, entry in enumerate(entries):
        where = f"bench.path: {path}, row {index}"
        if size > MAX_ROW_BYTES:
            limit_row(len(json.dumps(entry)), where)
        rows.append(_row(entry, where))
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if first.setdefault(row.id, index) != index:
            raise UserError(
                f"bench.path: {path}, row {index}, id: row {first[row.id]} also has the id {row.id}; change one of them"
            )
    return rows


def _row(entry: Any, where: str) -> Row:
    """Check one row and return it. Errors name file, row and field."""
    need = checks_of(where)

    need(isinstance(entry, dict), "whole row", "expected an object")
    for field in ("id", "question", "answer", "sub_task", "tools", "functions"):
        need(field in entry, field, "missing")
    need(isinstance(entry["id"], str | int), "id", "expected a number or a string")
    for field in ("question", "answer"):
        need(isinstance(entry[field], str), field, f"expected a string, got {type(entry[field]).__name__}")
    sub_task, tools = entry["sub_task"], entry["tools"]
    need(isinstance(sub_task, dict) and len(sub_task) > 0, "sub_task", "expected a non-empty object")
    need(all(isinstance(v, str) for v in sub_task.values()), "sub_task", "expected sub-questions with string answers")
    need(isinstance(tools, dict), "tools", "expected an object")
    need(set(tools) == set(sub_task), "tools", "its sub-questions differ from those of sub_task")
    for tool in tools.values():
        whole = (
            isinstance(tool, dict) and isinstance(tool.get("name"), str) and isinstance(tool.get("parameters"), dict)
        )
        need(whole, "tools", "expected tools with a name and parameters")
    sources = _sources(entry["functions"])
    need(sources is not None, "functions", "expected a list of Python sources, or an object of name and source")
    assert sources is not None
    for tool in tools.values():
        need(tool["name"] in sources, "functions", f"no source defines the tool {tool['name']}")
    return Row(
        id=str(entry["id"]),
        question=entry["question"],
        answer=entry["answer"],
        sub_questions=tuple(sub_task),
        sub_answers=tuple(sub_task.values()),
        tools=tuple(tools[question] for question in sub_task),
        sources=sources,
        answer_type=str(entry.get("answer_type", "")),
    )


def _sources(functions: Any) -> dict[str, str] | None:
    """Map names to sources. Upstream names a source by its first `def`; FTRL's form is a dictionary already."""
    if isinstance(functions, dict):
        return functions if all(isinstance(source, str) for source in functions.values()) else None
    if not isinstance(functions, list) or not all(isinstance(source, str) for source in functions):
        return None
    named = ((_FIRST_DEF.search(source), source) for source in functions)
    return {match.group(1): source for match, source in named if match}
