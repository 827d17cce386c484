"""Shared by the tests of how runs are started."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of this process that starts a worker fails."""
    monkeypatch.delattr("agentrl.runner.start.launch")
