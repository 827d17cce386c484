"""agentrl from Python makes the same runs as the command line, and raises instead of exiting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import agentrl
from agentrl.commands import api
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory

SMALL = {
    "trainer.max_steps": 1, "trainer.prompts_per_batch": 2, "trainer.minibatch_prompts": 2,
    "rollout.num_generations": 4, "bench.train_tasks": 4, "bench.test_tasks": 2, "hardware.threads": 1,
    "bench.train_hops": [1, 0, 0, 0],
}  # fmt: skip


def test_a_mapping_and_a_list_describe_the_same_run(tmp_path: Path) -> None:
    keys = {"algo": "grpo", "runs_dir": tmp_path / "a b=c", "dry_run": True, "run_id": None, **SMALL}
    first = api.run(keys)
    assert isinstance(first, RunDirectory) and first.status()["status"] == "dry_run"
    config = first.config()
    assert (config.algo.name, config.trainer.max_steps, config.bench.train_hops) == ("grpo", 1, [1.0, 0.0, 0.0, 0.0])
    words = ["algo=grpo", f"runs_dir='{tmp_path / 'a b=c'}'", "dry_run=true"]
    second = api.run([*words, *(f"{key}={value}".replace(" ", "") for key, value in SMALL.items())])
    assert second.path == first.path
    assert api.load_run(first.path).config() == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=grop"], "algo=grop is not a choice; did you mean grpo"),
        ({"trainer.learning_rat": 1}, "unknown key trainer.learning_rat"),
        ({"trainer.learning_rate": -1.0}, "must be above 0"),
        ("algo=grpo", "give a list of texts"),
        (["dry_run=true", 3], r"overrides\[1\] is 3; give texts such as 'seed=1', or a mapping"),
        (None, "overrides is None; give a list of texts"),
    ],
)
def test_mistakes_raise_user_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.run(overrides)


def test_the_package_offers_the_calls() -> None:
    assert (agentrl.run, agentrl.evaluate, agentrl.load_run) == (api.run, api.evaluate, api.load_run)
    assert agentrl.RunDirectory is RunDirectory and agentrl.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        agentrl.train  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(agentrl.__file__).parent / "py.typed").is_file()


def test_evaluation_errors_use_the_callers_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^endpoint=http://127\.0\.0\.1:9/v1: no server answers there"):
        api.evaluate("m", endpoint="http://127.0.0.1:9/v1", overrides={"runs_dir": tmp_path})
    with pytest.raises(UserError, match="a call takes one bench"):
        api.evaluate(bench="minihop,minihif")
    with pytest.raises(UserError, match="algo=pact trains"):
        api.evaluate(overrides={"algo": "pact", "dry_run": True})


def test_a_path_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        api.load_run(tmp_path)


def test_a_run_that_fails_raises_and_keeps_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: RunDirectory, *_: object) -> int:
        run.set_status("failed", error="Traceback\nValueError: no more memory")
        return 1

    monkeypatch.setattr("agentrl.runner.start.launch", fail)
    with pytest.raises(UserError, match=r"the run failed: ValueError: no more memory \(.*minihop-tiny-grpo"):
        api.run({"algo": "grpo", "runs_dir": tmp_path})


def test_importing_agentrl_is_light() -> None:
    """A notebook that lists runs must not wait for torch."""
    code = "import sys, agentrl; agentrl.load_run; print([n for n in ('torch', 'hydra', 'trl') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_train_evaluate_and_read(tmp_path: Path) -> None:
    run = api.run({"algo": "grpo", "runs_dir": tmp_path, "eval.before": False, **SMALL})
    summary = run.summary()
    assert summary is not None and run.status()["status"] == "completed"
    items = run.items("after")
    assert len(items) == 2 == summary["eval"]["after"]["solve_rate"]["n"]
    assert [record["step"] for record in run.read_metrics()] == [1] and run.rollouts()
    again = api.evaluate(str(run.path), "minihop", overrides={"runs_dir": tmp_path, "bench.test_tasks": 2})
    assert [item["messages"] for item in again.items()] == [item["messages"] for item in items]
