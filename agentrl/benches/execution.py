"""Runs the Python tools of one episode in the sandbox. Values and errors become text by the rule of the bench."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.chat.transcripts import Calls, parse_text
from agentrl.core.trajectory import ToolCall
from agentrl.sandbox import Result, Sandbox

ERROR_PREFIX = "an error occured when call"  # sic: the benchmarks' own spelling, which models are scored on


def plain_text(result: Result) -> str:
    """Format a value by FTRL's rule: a dict or list as JSON, anything else with str()."""
    if result.type in ("dict", "list"):
        return json_text(result)
    return result.text


def json_text(result: Result) -> str:
    """Format a value by ToolHop's rule: always as JSON, so strings have quotes.

    Raises ValueError if the value is not serialisable, which makes the call an error.
    """
    if result.json is None:
        raise ValueError(result.json_error)
    return result.json


def key_error(name: Any) -> str:
    """Return FTRL's error text for an unknown tool: FTRL looks it up in a dictionary."""
    return repr(name)


def name_error(name: Any) -> str:
    """Return ToolHop's error text for an unknown tool: ToolHop evaluates its name."""
    return f"name {name!r} is not defined"


WORKERS = 4  # of the sandbox of a bench: so many independent calls of one turn run side by side


class ToolEnvironment:
    """The tools of one episode as {name: source}. Any number of environments may share a sandbox."""

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
        """Execute one call. `arguments` may also be the JSON text of an object. Never raises."""
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            observation, error = self._execute(name, arguments), False
        except (ValueError, RecursionError) as failure:  # faulty JSON, or an error of the call
            observation, error = f"{ERROR_PREFIX} {name}: {failure}", True
        return ToolCall(turn=turn, name=name, arguments=arguments, observation=observation, error=error)

    def _execute(self, name: str, arguments: Any) -> str:
        if not isinstance(name, str) or name not in self.sources:
            raise ValueError(self.unknown_tool(name))
        result = self._episode.call(self.sources[name], name, arguments)
        if result.error is not None:
            raise ValueError(result.error)
        return self.format_value(result)
