"""Write the reasoning of a mined turn from templates: the need, the tool, and where each argument comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrl.core.expert_trace import Chunk
from agentrl.mining.grounding import Knowledge


def write_reasoning(
    need: str, tool: Mapping[str, Any], arguments: Mapping[str, Any], knowledge: Knowledge
) -> tuple[Chunk, ...]:
    """Return the chunks of one turn; `knowledge` is what is known before its call."""
    purpose = str(tool.get("description", "")).split(". ")[0].strip().rstrip(".")
    chunks = [
        Chunk("task_restate", f"I need to find out: {need}\n"),
        Chunk("tool_selection", f"{tool['name']} can tell me. {purpose}.\n"),
    ]
    if arguments:
        schemas = tool["parameters"].get("properties") or {}
        origins = "; ".join(
            f"{name} {_origin(value, schemas.get(name), knowledge)}" for name, value in arguments.items()
        )
        chunks.append(Chunk("required_arg_grounding", f"Its arguments: {origins}.\n"))
    chunks.append(Chunk("decision_summary", "I have all it needs, so I call it now.\n"))
    return tuple(chunks)


def _origin(value: Any, schema: Mapping[str, Any] | None, knowledge: Knowledge) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    source = knowledge.source(value, schema)
    if source is None or source == "schema":
        return f"is set to {shown}, as its description allows"
    if source.startswith("step"):
        return f"is {shown}, from the result of {source}"
    return f"is {shown}, from {'what I know' if source == 'several texts' else 'the question'}"
