"""An evaluation samples the policy that its method trains, or as its suite is evaluated; every value is a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.commands.arguments import split_keys
from agentrl.commands.eval import KEYS, _benches, compose_job
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.core.bench import Score, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.core.stop import StopRequest
from agentrl.core.trajectory import Trajectory
from agentrl.evaluation.evaluate import evaluate
from agentrl.store.run import RunDirectory
from tests.support.helpers import SUITES, composed
from tests.support.methods import SIDES


def job_of(*arguments: str) -> Config:
    """The configuration of an `agentrl eval` of one model on one bench."""
    own, overrides = split_keys(list(arguments), KEYS)
    (bench,), _ = _benches(own, [own["model"]])
    return compose_job(own["model"], bench, own, overrides, [bench], [own["model"]])


def sampling(config: Config) -> tuple[float, float]:
    return config.eval.temperature, config.eval.top_p


@pytest.mark.parametrize("algo", SIDES)
def test_methods_on_instruction_hierarchies_are_evaluated_as_they_sample(algo: str) -> None:
    paper = composed(f"algo={algo}", "model=qwen3-1.7b", "bench=systemcheck")
    assert sampling(paper) == (paper.rollout.temperature, paper.rollout.top_p) == (0.7, 0.9)
    assert (paper.rollout.max_turns, paper.rollout.max_completion_tokens) == (1, 256)
    tiny = composed(f"algo={algo}")
    assert sampling(tiny) == (tiny.rollout.temperature, tiny.rollout.top_p) == (1.0, 1.0)  # as its base was made


def test_a_rollout_key_carries_over_unless_evaluation_says_otherwise() -> None:
    assert sampling(composed("algo=hipo", "rollout.temperature=0.9", "rollout.top_p=0.8")) == (0.9, 0.8)
    assert sampling(composed("algo=hipo", "rollout.top_p=0.8", "eval.temperature=0", "eval.top_p=1")) == (0.0, 1.0)


@pytest.mark.parametrize("bench", SUITES)
@pytest.mark.parametrize("algo", ["eval", "sft"])
def test_suites_are_evaluated_as_the_paper_does_whatever_was_trained(algo: str, bench: str) -> None:
    config = composed(f"algo={algo}", "model=qwen3-1.7b", f"bench={bench}", "bench.path=x")
    assert sampling(config) == (0.7, 0.9)
    assert (config.rollout.max_turns, config.rollout.max_completion_tokens) == (1, 256)


@pytest.mark.parametrize("bench", ["minihop", "toolhop", "ftrl", "bfcl"])
def test_tool_benches_are_decoded_greedily(bench: str) -> None:
    path = [] if bench == "minihop" else ["bench.path=x"]
    for algo in ("eval", "pact", "grpo"):
        assert sampling(composed(f"algo={algo}", "model=qwen3-4b", f"bench={bench}", *path)) == (0.0, 1.0)


def test_the_papers_suite_has_its_token_budgets_and_keys_on_the_command_line_win() -> None:
    job = job_of("suite=hipo", "model=qwen3-4b", "judge=openai", "judge.model=m", "systemcheck.path=x")
    assert sampling(job) == (0.7, 0.9)
    assert (job.rollout.max_turns, job.rollout.max_completion_tokens, job.rollout.max_turn_tokens) == (1, 256, None)
    job = job_of("bench=verih", "verih.path=x", "model=qwen3-4b", "temperature=0.5", "top_p=0.8")
    assert sampling(job) == (0.5, 0.8)


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1"])
def test_a_mass_outside_its_range_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"eval\.top_p=.*must lie in"):
        validate(composed(f"eval.top_p={value}"))


class Bench:
    name, solve_metric = "one", "solved"

    def environment(self, task: Task) -> Any:
        return None

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return Score({"solved": 1.0}, task.cluster)


class Engine:
    def __init__(self) -> None:
        self.seen: list[Decoding | None] = []

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        self.seen.append(decoding)
        return [Trajectory(e.task.id, [], [], [], [], [], [{"role": "assistant", "content": ""}]) for e in episodes]


def test_the_engine_is_told_both(tmp_path: Path) -> None:
    config = composed("eval.temperature=0.6", "eval.top_p=0.85", f"runs_dir={tmp_path}")
    run, engine = RunDirectory.create(config), Engine()
    assert run is not None
    task = Task("a", [{"role": "user", "content": "?"}], [], "", "a")
    with RunConsole() as console:
        evaluate(engine, Bench(), [task], config.eval, run, "after", console, StopRequest())  # type: ignore[arg-type]
    assert engine.seen == [Decoding(0.6, 0.85)]


def test_a_run_is_evaluated_on_its_own_bench_as_it_was_sampled(tmp_path: Path) -> None:
    config = composed(
        "algo=hipo", "rollout.temperature=0.9", "rollout.max_completion_tokens=20", f"runs_dir={tmp_path}"
    )
    run = RunDirectory.create(config)
    assert run is not None
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    own = job_of("bench=minihif", f"model={run.path}")
    assert sampling(own) == (0.9, 1.0) and own.rollout.max_completion_tokens == 20
    assert sampling(job_of("bench=minihif", f"model={run.path}", "temperature=0")) == (0.0, 1.0)
    other = job_of("bench=verih", "verih.path=x", f"model={run.path}")  # as its suite and its model's budgets are
    assert sampling(other) == (0.7, 0.9) and other.rollout.max_completion_tokens == 48
    assert job_of("bench=iheval", "iheval.path=x", f"model={run.path}").rollout.max_completion_tokens == 512
