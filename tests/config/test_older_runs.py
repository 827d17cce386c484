"""Run directories of older versions stay readable: `tests/config/older/` has configurations as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from agentrl.config.load import load_config
from agentrl.core.errors import UserError
from tests.support.helpers import composed

OLDER = sorted((Path(__file__).parent / "older").glob("*.yaml"))


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_a_key_that_came_later_has_the_value_with_which_the_run_was_made(path: Path) -> None:
    config = load_config(path)
    assert config.algo.name == path.stem
    assert config.rollout.ahead == 0


def test_a_key_says_itself_with_which_value_runs_acted_that_lack_it(tmp_path: Path) -> None:
    values = composed("algo=pact", "bench=minihop", "algo.q_from=success", "trainer.engine=padded").model_dump()
    del values["algo"]["q_from"], values["algo"]["conditioned"], values["algo"]["advantage"]["signs"]
    del values["trainer"]["engine"], values["bench"]["forbid"]
    config = resaved(tmp_path, values)
    assert (config.algo.q_from, config.algo.advantage.signs) == ("key", "earned")
    assert config.algo.conditioned.model_dump() == {"advantages": "all", "floor": None, "weight": "one"}
    assert (config.trainer.engine, config.bench.forbid) == ("auto", None)
    del values["algo"]["q"]
    with pytest.raises(UserError, match=r"algo\.q has no value"):
        resaved(tmp_path, values)


def resaved(where: Path, values: dict[str, Any]) -> Any:
    OmegaConf.save(OmegaConf.create(values), where / "config.yaml")
    return load_config(where)
