"""What every test needs: one thread, no network, and the shared data where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch is imported: two processes with all cores each are many times slower than one thread each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["COLUMNS"] = "200"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared() -> Path:
    """The directory with real benchmark data and golden verdicts; tests that need it skip without it."""
    path = Path(os.environ.get("AGENTRL_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} does not exist; set AGENTRL_SHARED to the directory with the shared data")
    return path
