"""Show the warnings of agentrl as one line each, and leave out those of libraries that no user can act on."""

from __future__ import annotations

import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1])
_plain = warnings.formatwarning


def quiet_libraries() -> None:
    """Set up this process for its warnings. Call it before models are loaded; a second call changes nothing."""
    from transformers.utils import logging  # slow to import

    warnings.filterwarnings("ignore", category=FutureWarning)
    # a call that a model wrote as Python may have an odd escape
    warnings.filterwarnings("ignore", category=SyntaxWarning, module="<unknown>")
    # PEFT looks for the base's configuration to see whether the vocabulary has grown; agentrl adds no tokens.
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    warnings.formatwarning = _format  # type: ignore[assignment]  # typeshed wants the names of its own arguments
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _format(message: Warning | str, category: type[Warning], file: str, line: int, text: str | None = None) -> str:
    if file.startswith(PACKAGE):
        return f"agentrl: warning: {message}\n"
    return _plain(message, category, file, line, text)
