"""agentrl: post-train language-model agents (PACT, HIPO, GRPO, SFT) from one command, or from Python.

`agentrl.run`, `agentrl.evaluate` and `agentrl.load_run` do in Python what the command line does (docs/python.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.core.version import DISTRIBUTION, __version__

if TYPE_CHECKING:
    from agentrl.commands.api import RunDirectory, UserError, evaluate, load_run, run

__all__ = ["DISTRIBUTION", "RunDirectory", "UserError", "__version__", "evaluate", "load_run", "run"]


def __getattr__(name: str) -> Any:
    """The names of agentrl/commands/api.py, imported when they are first used: `import agentrl` alone stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'agentrl' has no attribute '{name}'")
    from agentrl.commands import api

    return getattr(api, name)
