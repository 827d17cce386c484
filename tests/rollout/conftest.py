"""Tests of rollouts wait a hundredth of a second where a client waits for a server."""

from __future__ import annotations

import pytest

from agentrl.endpoint import client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
