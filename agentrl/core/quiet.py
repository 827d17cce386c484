"""Show the warnings of agentrl as one line each, and leave out those of libraries that no user can act on."""

from __future__ import annotations

import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1])


def quiet_libraries() -> None:
    """Set up this process: call it before models are loaded."""
    from transformers.utils import logging  # slow to import

    warnings.filterwarnings("ignore", category=FutureWarning)
    # PEFT looks for the base's configuration to see whether the vocabulary has grown; agentrl adds no tokens.
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    plain = warnings.formatwarning

    def show(message: Warning | str, category: type[Warning], filename: str, line: int, text: str | None = None) -> str:
        if filename.startswith(PACKAGE):
            return f"agentrl: warning: {message}\n"
        return plain(message, category, filename, line, text)

    warnings.formatwarning = show  # type: ignore[assignment]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
