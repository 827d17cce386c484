"""Calls tools of an environment that may break.

An environment returns errors that the model should read, such as a wrong argument, as observations. If
`Environment.call` raises an exception, the environment itself is broken. `faults.dead_tools` then decides what happens.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from agentrl.core.bench import Environment
from agentrl.core.errors import UserError
from agentrl.core.text import replace_surrogates
from agentrl.core.trajectory import ToolCall

UNAVAILABLE = "the tool is not available"


class ToolsDied(Exception):
    """The environment of an episode broke."""


def call_tool(environment: Environment, name: str, arguments: Any, dead_tools: str) -> ToolCall:
    """Execute one tool call and return it with its observation.

    If the environment breaks, raise ToolsDied for dead_tools='stop'; otherwise warn and return a failed call.
    """
    try:
        done = environment.call(name, arguments, 0)
        return done if done.observation.isascii() else replace(done, observation=replace_surrogates(done.observation))
    except Exception as failure:  # the bench's own code may raise anything; both branches report it
        reason = f"{type(failure).__name__}: {failure}"
        if dead_tools == "stop":
            raise ToolsDied(reason) from failure
        warnings.warn(f"the environment of tool {name} failed ({reason}); the call counts as an error", stacklevel=2)
        return ToolCall(0, name, arguments, UNAVAILABLE, error=True)


def broken_tools(bench: str, death: ToolsDied) -> UserError:
    """Make the error that tells the user that the tools of `bench` broke."""
    return UserError(
        f"the tools of bench={bench} broke ({death}); repair them and repeat the command, or set "
        "faults.dead_tools=continue to count such calls as errors"
    )
