"""Writes a run's evaluation as the result files that the official `bfcl evaluate` reads.


Each line is one item. `result` is the model's text of every step of every user turn. Calls are written as Qwen's
function-calling models write them, so the official handler of these models can decode them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.benches.bfcl.calls import without_thought
from agentrl.benches.bfcl.data import MEMORY, MULTI_TURN
from agentrl.benches.bfcl.verdicts import Step, turns_of
from agentrl.config.benches import BFCL_GROUPS

MODEL = "Qwen/Qwen3-8B-FC"  # the official evaluator knows this name, and its handler reads this format


def result_files(items: Iterable[Mapping[str, Any]], model: str = MODEL) -> dict[Path, list[dict[str, Any]]]:
    """Map relative paths in the official layout to the lines of each category. Takes the first sample of every item."""
    files: dict[Path, list[dict[str, Any]]] = {}
    for item in items:
        if item["sample"] == 0:
            category = category_of(item["id"])
            turns = turns_of(item["messages"])
            result = [[step_text(step) for step in turn] for turn in turns]
            line = {"id": item["id"], "result": result if category in MULTI_TURN else (result or [[]])}
            files.setdefault(result_path(category, model), []).append(line)
    return files


def category_of(item_id: str) -> str:
    """Return the category at the beginning of an id."""
    return next(name for name in BFCL_GROUPS["all"] if item_id.startswith(f"{name}_"))


def result_path(category: str, model: str) -> Path:
    """Return `<model>/<group>/BFCL_v4_<category>_result.json`, the path of the official generator."""
    if category in MULTI_TURN:
        group = Path("multi_turn")
    elif category in MEMORY:
        group = Path("agentic", "memory", category.removeprefix("memory_"))
    else:
        group = Path("agentic")
    return Path(model.replace("/", "_")) / group / f"BFCL_v4_{category}_result.json"


def step_text(step: Step) -> str:
    """Return the assistant's text with its calls, as a Qwen model writes them. It has no reasoning, as officially."""
    text = without_thought(step["text"])
    blocks = [
        f"<tool_call>\n{json.dumps({'name': call['name'], 'arguments': call['arguments']})}\n</tool_call>"
        for call in step["calls"]
    ]
    return "\n".join([text, *blocks] if text else blocks)


def write_results(items: Sequence[Mapping[str, Any]], directory: Path, model: str) -> list[Path]:
    """Write the result files to `directory`. Returns their paths."""
    paths = []
    for relative, lines in result_files(items, model).items():
        path = directory / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        paths.append(path)
    return paths
