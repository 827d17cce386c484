"""Run directories of older versions stay readable: `tests/config/older/` has configurations as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.config.load import load_config

OLDER = sorted((Path(__file__).parent / "older").glob("*.yaml"))


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_a_key_that_came_later_has_the_value_with_which_the_run_was_made(path: Path) -> None:
    config = load_config(path)
    assert config.algo.name == path.stem
    assert config.rollout.ahead == 0
