"""Calls of an environment that may die.

What a model should read (a wrong argument, an error of the tool's own code) is an observation of the environment. An
exception that leaves `Environment.call` is none: the environment itself is broken, and `faults.dead_tools` decides.
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
    """One call. Where the environment breaks: ToolsDied for dead_tools='stop', else a failed call and a warning."""
    try:
        done = environment.call(name, arguments, 0)
        return done if done.observation.isascii() else replace(done, observation=replace_surrogates(done.observation))
    except Exception as failure:  # whatever the bench's own code raises; it is reported either way
        reason = f"{type(failure).__name__}: {failure}"
        if dead_tools == "stop":
            raise ToolsDied(reason) from failure
        warnings.warn(f"the environment of tool {name} failed ({reason}); the call counts as an error", stacklevel=2)
        return ToolCall(0, name, arguments, UNAVAILABLE, error=True)


def broken_tools(bench: str, death: ToolsDied) -> UserError:
    """What the user reads where the tools of `bench` died."""
    return UserError(
        f"the tools of bench={bench} broke ({death}); mend them and give the same command, or let "
        "faults.dead_tools=continue count such calls as errors"
    )
