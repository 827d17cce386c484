"""A real language model, SmolLM2-135M-Instruct.

`make smollm2` makes models/smollm2-135m; AGENTRL_SMOLLM2 names another folder that has it. Without either the test
skips.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT


def smollm2_path() -> Path:
    """The folder of the checkpoint; skips the test where there is none."""
    folder = Path(os.environ.get("AGENTRL_SMOLLM2", ROOT / "models" / "smollm2-135m"))
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} holds no checkpoint: run make smollm2, or name one with AGENTRL_SMOLLM2")
    return folder
