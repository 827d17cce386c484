"""A method and a bench are known by their class of keys alone: both are made here, and nothing else is told of them.

CONTRIBUTING.md lists the files that a packaged one consists of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from agentrl.benches import load_bench
from agentrl.config.algos.grpo import Grpo
from agentrl.config.algos.table import ALGOS
from agentrl.config.benches import BENCHES
from agentrl.config.defaults import keys
from agentrl.config.help import help_text
from agentrl.config.key import key
from agentrl.config.load import typed_config
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.config.traits import BenchKeys
from agentrl.core.bench import Bench, NoTools, Score, Task
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory
from agentrl.cost.estimate import estimate
from agentrl.evaluation.tasks import check_tasks
from agentrl.store.identity import config_hash
from agentrl.trainers.grpo import AgentGRPOTrainer
from tests.support.helpers import CONF, make_trainer, small


class LettersKeys(BenchKeys):
    loads = f"{__name__}:Letters"

    train_tasks: int = key("Tasks in the training split.", ge=1)


class Letters(Bench):
    """The reply is to hold a letter."""

    name = "letters"
    solve_metric = "held"

    def __init__(self, config: LettersKeys) -> None:
        self.config = config

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        letters = {"train": "abcdefgh"[: self.config.train_tasks], "test": "xyz"}[split]
        return [Task(one, [{"role": "user", "content": one}], [], one, cluster=one) for one in letters[:limit]]

    def environment(self, task: Task) -> NoTools:
        return NoTools()

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return Score({"held": float(task.answer in trajectory.final_text)}, task.cluster)

    def reward(self, task: Task, trajectory: Trajectory) -> float:
        return self.score(task, trajectory).metrics["held"] or 0.0


class SignKeys(Grpo):
    trainer = f"{__name__}:SignTrainer"
    advantages = f"{__name__}:sign_advantages"

    strength: float = key("Size of an advantage.", gt=0)

    def advantage_arguments(self) -> dict[str, Any]:
        return {"strength": self.strength}


def sign_advantages(rewards: Tensor, mask: Tensor, *, strength: float) -> Tensor:
    """A return above the group's mean is as good as any other above it. (N, K, T), as its result."""
    returns = rewards.sum(-1, keepdim=True)
    return (strength * (returns - returns.mean(1, keepdim=True)).sign()).expand_as(rewards)


class SignTrainer(AgentGRPOTrainer):
    """A trainer of one's own; a method of which only the advantages are new needs none."""


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """algo=sign bench=letters, registered for one test."""
    monkeypatch.setitem(ALGOS, "sign", SignKeys)
    monkeypatch.setitem(BENCHES, "letters", LettersKeys)
    registered_anew()
    raw = OmegaConf.create(small("algo=grpo").model_dump())
    raw.algo = {**raw.algo, "name": "sign", "strength": 0.5}
    raw.bench = {"name": "letters", "train_tasks": 4}
    yield typed_config(raw)
    monkeypatch.undo()
    registered_anew()


def registered_anew() -> None:
    """What is made once of the registered classes is made again."""
    Config.model_rebuild(force=True)
    keys.cache_clear()


def test_checks_estimates_help_and_identity_know_both(config: Config) -> None:
    assert validate(config) == []
    check_tasks(config)
    planned = estimate(config)
    assert (planned.train_tasks, planned.eval_episodes) == (4, 2 * 3)
    assert config_hash(config) != config_hash(small("algo=grpo"))
    shown = help_text(CONF, [], OmegaConf.to_container(OmegaConf.create(config.model_dump())), [])  # type: ignore[arg-type]
    assert "algo.strength=0.5" in shown and "bench.train_tasks=4" in shown
    assert "\nreward" in shown and "\nanneal" not in shown and "\ntraces" not in shown


def test_both_train(config: Config, tmp_path: Path) -> None:
    def script(task: Task, sample: int, turn: int) -> str:
        return task.answer if sample == 0 else "none"

    trainer: Any = make_trainer(config, tmp_path, script)
    assert type(trainer) is SignTrainer and isinstance(trainer.bench, Letters)
    given = torch.tensor([[1.0], [0.0], [0.0], [0.0]] * 2)
    assert trainer.turn_advantages(given, torch.ones_like(given)).flatten().tolist() == [0.5, -0.5, -0.5, -0.5] * 2
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert len(rewards) == config.trainer.max_steps and all(0.25 <= reward <= 0.5 for reward in rewards)


def test_a_bench_that_reads_a_file_need_not_check_that_it_exists(tmp_path: Path) -> None:
    class FileKeys(BenchKeys):
        path: str = key("A file.", place="data")

    FileKeys(name="file", path=str(tmp_path)).check_path()
    with pytest.raises(UserError, match=r"bench\.path=.*absent: no such file or directory"):
        FileKeys(name="file", path=str(tmp_path / "absent")).check_path()


def test_the_bench_is_loaded_by_its_keys(config: Config) -> None:
    bench = load_bench(config.bench)
    assert isinstance(bench, Letters) and bench.size("train") == 4 and bench.size("test") == 3
