"""Reads the data files of BFCL v4 in the bfcl-eval package: categories, entries, function docs, gold answers."""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from agentrl.benches.bfcl.simulator import package_dir
from agentrl.benches.rows import read_text
from agentrl.core.errors import UserError
from agentrl.core.jsonl import explain_json, numbered_lines, read_json

MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
MEMORY = ("memory_kv", "memory_rec_sum", "memory_vector")
WEB_SEARCH = ("web_search_base", "web_search_no_snippet")
DOC_FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
    "WebSearchAPI": "web_search",
    "MemoryAPI_kv": "memory_kv",
    "MemoryAPI_rec_sum": "memory_rec_sum",
    "MemoryAPI_vector": "memory_vector",
}
# Names of types in the function docs -> names in JSON Schema. The docs also use some names of JSON Schema.
SCHEMA_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",
    "bool": "boolean",
    "list": "array",
}


@dataclass(frozen=True)
class Entry:
    """One item. Multi-turn items have `gold` calls for each user turn; memory and web items have accepted `answers`."""

    id: str
    category: str
    number: int  # 0-based place in its file, which the variants of an item share
    turns: tuple[str, ...]  # what the user says in each turn
    functions: tuple[dict[str, Any], ...]  # docs of the functions available from the start
    classes: tuple[str, ...]
    initial_config: dict[str, Any]
    late: Mapping[int, tuple[dict[str, Any], ...]] = field(default_factory=dict)  # turn -> docs available from then on
    gold: tuple[tuple[str, ...], ...] = ()
    answers: tuple[str, ...] = ()
    source: Any = None  # evidence: a sentence (memory), or hops with URLs (web search)
    scenario: str = ""  # scenario of a memory item

    @property
    def docs(self) -> dict[str, dict[str, Any]]:
        """All function docs by name, including those held out: the official code executes them at any time."""
        return {doc["name"]: doc for docs in (self.functions, *self.late.values()) for doc in docs}

    @property
    def payload(self) -> dict[str, Any]:
        """What the simulator needs to make the item's instances."""
        return {"id": self.id, "initial_config": self.initial_config, "involved_classes": list(self.classes)}


class DataFiles:
    """The data of the installed package, or of a copy of its `data` directory."""

    def __init__(self, directory: Path | None = None) -> None:
        self._own = directory
        self._docs: dict[str, tuple[dict[str, Any], ...]] = {}

    @classmethod
    def of(cls, path: str | None, categories: tuple[str, ...]) -> tuple[DataFiles, tuple[str, ...]]:
        """Return the data that `bench.path` names, and the categories. If the path is a file, those of the file."""
        if path is None:
            return cls(), categories
        place = Path(path).expanduser()
        if place.is_dir():
            return cls(place), categories
        held = tuple(category for category in (*MULTI_TURN, *MEMORY, *WEB_SEARCH) if file_name(category) == place.name)
        if not held or not place.is_file():
            raise UserError(f"bench.path: {path} is not a data file of BFCL v4; give e.g. {file_name(MULTI_TURN[0])}")
        return cls(place.parent), tuple(name for name in categories if name in held) or held[:1]

    def _file(self, *parts: str) -> Path:
        """Return a data file of the user's directory if it is there, else the package's."""
        own = self._own.joinpath(*parts) if self._own else None
        return own if own is not None and own.is_file() else package_dir().joinpath("data", *parts)

    def entries(self, category: str) -> list[Entry]:
        """Read the items of one category in file order, without the earlier conversations of memory."""
        package_dir()  # raises without the package, which plays and checks all items
        name = file_name(category)
        file, answers = self._file(name), self._file("possible_answer", name)
        rows, golds = read_lines(file), read_lines(answers)
        if len(rows) != len(golds):
            raise UserError(
                f"bench.path: {file} has {len(rows)} rows, but {answers} has {len(golds)}; get both files again"
            )
        return [
            self._entry(category, number, row, gold, f"bench.path: {file}, line {number + 1}")
            for number, (row, gold) in enumerate(zip(rows, golds, strict=True))
        ]

    def _entry(self, category: str, number: int, row: Any, gold: Any, where: str) -> Entry:
        try:
            if category in MULTI_TURN:
                return self._multi_turn(category, number, row, gold)
            known = {"answers": tuple(gold["ground_truth"]), "source": gold.get("source")}
            return self._one_tool(category, number, row, scenario=row.get("scenario", ""), **known)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{where} is not a BFCL v4 row ({reason}); use the files of bfcl-eval's wheel") from error

    def _multi_turn(self, category: str, number: int, row: Any, gold: Any) -> Entry:
        offered = list(self.docs(row["involved_classes"]))
        late: dict[int, tuple[dict[str, Any], ...]] = {}
        for turn, names in row.get("missed_function", {}).items():
            late[int(turn)] = tuple(doc for name in names for doc in offered if doc["name"] == name)
            offered = [doc for doc in offered if doc["name"] not in names]
        turns = tuple(
            late_message(late[index]) if index in late else messages[-1]["content"]
            for index, messages in enumerate(row["question"])
        )
        return Entry(
            id=row["id"],
            category=category,
            number=number,
            turns=turns,
            functions=tuple(offered),
            classes=tuple(row["involved_classes"]),
            initial_config=row["initial_config"],
            late=late,
            gold=tuple(tuple(calls) for calls in gold["ground_truth"]),
        )

    def _one_tool(self, category: str, number: int, row: Any, **known: Any) -> Entry:
        """Make the entry of a row with one class of tools: a memory, or web search."""
        kind = "memory" if category in MEMORY else "web_search"
        classes = (f"MemoryAPI_{category.removeprefix('memory_')}",) if kind == "memory" else ("WebSearchAPI",)
        return Entry(
            id=row["id"].replace(kind, category, 1),
            category=category,
            number=number,
            turns=tuple(messages[-1]["content"] for messages in row["question"]),
            functions=self.docs(classes),
            classes=classes,
            initial_config={},
            **known,
        )

    def docs(self, classes: Sequence[str]) -> tuple[dict[str, Any], ...]:
        """Return the function docs of the classes, in order."""
        for name in classes:
            if name not in self._docs:
                self._docs[name] = tuple(read_lines(self._file("multi_turn_func_doc", f"{DOC_FILES[name]}.json")))
        return tuple(doc for name in classes for doc in self._docs[name])

    def conversations(self, category: str, scenario: str) -> list[Entry]:
        """Return the conversations that fill a scenario's memory, in order. Each starts from the memory of the last."""
        rows = read_lines(self._file("memory_prereq_conversation", f"memory_{scenario}.json"))
        return [self._one_tool(category, number, row, scenario=scenario) for number, row in enumerate(rows)]


def file_name(category: str) -> str:
    """Name the data file of a category. The memory backends share one file, and so do both kinds of web search."""
    shared = "memory" if category in MEMORY else "web_search" if category in WEB_SEARCH else category
    return f"BFCL_v4_{shared}.json"


def read_lines(path: Path) -> list[Any]:
    """Read the JSON object of every line. Raises UserError with the line."""
    rows = []
    for number, line in numbered_lines(read_text(path, "leave bench.path=null")):
        try:
            rows.append(read_json(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"bench.path: {path}, line {number} is not complete JSON ({explain_json(error)}); get the file again"
            ) from error
    return rows


def tool_schema(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a function doc into an OpenAI-style tool. Types are renamed as in the official handlers of such APIs."""
    function = copy.deepcopy(dict(doc))
    parameters = function["parameters"]
    parameters["type"] = "object"
    _rename_types(parameters.get("properties", {}))
    return {"type": "function", "function": function}


def _rename_types(properties: dict[str, Any]) -> None:
    for value in properties.values():
        if value.get("type") == "float":
            value["format"] = "float"
            value["description"] = value.get("description", "") + " This is a float type value."
        _rename(value)
        inner: Any = value
        while isinstance(inner := inner.get("items"), dict):
            _rename(inner)
            _rename_types(inner.get("properties", {}))
        _rename_types(value.get("properties", {}))


def _rename(value: dict[str, Any]) -> None:
    kind = value.get("type", "string")
    value["type"] = SCHEMA_TYPES.get(kind, kind)


@cache
def official_prompts() -> Any:
    """Import the prompt texts of bfcl-eval. Unlike most of the package, this module writes nothing to the disk."""
    package_dir()
    return importlib.import_module("bfcl_eval.constants.default_prompts")


def late_message(docs: Sequence[Mapping[str, Any]]) -> str:
    """Return what the user says when functions become available later: the official sentence with their schemas.

    The official loop renders all functions again at the top of the prompt. We cannot change the prompt of tokens that
    are already sampled. So the functions are announced where they appear, as the official loop does for models without
    native function calling.
    """
    schemas = json.dumps([tool_schema(doc) for doc in docs])
    text: str = official_prompts().DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING.format(functions=schemas)
    return text


def memory_config(entry: Entry, directory: Path) -> dict[str, Any]:
    """Return the initial configuration of a memory entry, with its snapshots in `directory`."""
    return {
        entry.classes[0]: {
            "model_result_dir": os.fspath(directory.resolve()),
            "scenario": entry.scenario,
            "test_id": entry.id,
            "test_category": entry.id.rsplit("_", 1)[0],
        }
    }
