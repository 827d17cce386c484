"""One episode's Python tools: calls run in the sandbox, values become text by the bench's rule, errors are text too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.chat.transcripts import Calls, parse_text
from agentrl.core.trajectory import ToolCall
from agentrl.sandbox import Result, Sandbox

ERROR_PREFIX = "an error occured when call"  # sic: the benchmarks' own spelling, which models are scored on


def plain_text(result: Result) -> str:
    """FTRL's rule: a dict or list as JSON, a string as it is, anything else through str()."""
    if result.type in ("dict", "list"):
        return json_text(result)
    return result.text


def json_text(result: Result) -> str:
    """ToolHop's rule: JSON always, so strings come quoted; a value that is no JSON is an error of the call."""
    if result.json is None:
        raise ValueError(result.json_error)
    return result.json


def key_error(name: Any) -> str:
    """FTRL looks an unknown tool up in a dictionary."""
    return repr(name)


def name_error(name: Any) -> str:
    """ToolHop evaluates the name of an unknown tool."""
    return f"name {name!r} is not defined"


WORKERS = 4  # of the sandbox of a bench: so many independent calls of one turn run side by side


class ToolEnvironment:
    """The tools of one episode as {name: source}; the sandbox may be shared by any number of environments."""

    independent_calls = True  # every call has a fresh namespace

    def __init__(
        self,
        sources: Mapping[str, str],
        format_value: Callable[[Result], str],
        sandbox: Sandbox,
        unknown_tool: Callable[[Any], str] = key_error,
        read: Callable[[str], tuple[str, Calls]] = parse_text,
    ) -> None:
        self.sources, self.format_value, self.unknown_tool, self.read = sources, format_value, unknown_tool, read
        self._episode = sandbox.episode()

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        """Execute one call. `arguments` may also be the JSON text of an object; nothing raises."""
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            observation, error = self._execute(name, arguments), False
        except (ValueError, RecursionError) as failure:  # JSON of the model's or the tool's, or the call's own error
            observation, error = f"{ERROR_PREFIX} {name}: {failure}", True
        return ToolCall(turn=turn, name=name, arguments=arguments, observation=observation, error=error)

    def _execute(self, name: str, arguments: Any) -> str:
        if not isinstance(name, str) or name not in self.sources:
            raise ValueError(self.unknown_tool(name))
        result = self._episode.call(self.sources[name], name, arguments)
        if result.error is not None:
            raise ValueError(result.error)
        return self.format_value(result)
