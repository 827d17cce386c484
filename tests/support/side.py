"""Shared by the tests of side evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.benches import load_bench
from agentrl.core.trajectory import Trajectory
from tests.support.helpers import composed


def reply(text: str, cut: bool = False) -> Trajectory:
    """An episode whose only message is `text`."""
    return Trajectory("x", [], [], [], [], [], [{"role": "assistant", "content": text}], truncated=cut)


def bench_of(name: str, path: Path, *keys: str) -> Any:
    return load_bench(composed("algo=eval", f"bench={name}", f"bench.path={path}", *keys).bench)
