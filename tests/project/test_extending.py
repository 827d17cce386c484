"""The files of docs/extending.md: what the page shows is what runs, and a user needs no edit of the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentrl.benches import load_bench
from agentrl.config.benches import CustomBench
from agentrl.core.custom import load_attribute
from agentrl.core.errors import UserError
from agentrl.core.stop import StopRequest
from agentrl.core.trajectory import Component, Trajectory
from agentrl.runner.start import check
from agentrl.runner.work import evaluate_only
from agentrl.store.run import RunDirectory
from agentrl.trainers.build import rl_trainer, tell_reward
from tests.support.command_line import agentrl
from tests.support.helpers import composed, make_trainer

ROOT = Path(__file__).resolve().parents[2]
BENCH, OWN_SCORE, ALGO = (ROOT / "examples" / f"{name}.py" for name in ("bench_sums", "bench_words", "algo_rloo"))
CUSTOM = ("bench=custom", f"bench.path={BENCH}", "algo=custom", f"algo.path={ALGO}", "reward=answer")


def test_the_page_shows_the_files() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert shown == [BENCH.read_text(), OWN_SCORE.read_text(), ALGO.read_text()]
    assert all(len(text.splitlines()) < 60 for text in shown) and len(shown[1].splitlines()) < 40


def test_the_bench_keeps_the_contract() -> None:
    bench = load_bench(CustomBench(name="custom", path=str(BENCH), options={"tasks": 12, "largest": 9}))
    train, test = bench.tasks("train"), bench.tasks("test")
    assert len(train) == 12 and train == bench.tasks("train")
    assert not {task.cluster for task in train} & {task.cluster for task in test}
    assert bench.tasks("test", limit=3, seed=1) == bench.tasks("test", limit=3, seed=1) != test[:3]
    task = train[0]
    tools = bench.environment(task)
    called = tools.call("add", task.data, 0)
    assert (called.observation, called.error) == (task.answer, False)
    for name, arguments in (("add", {"a": 1}), ("add", "1 + 2"), ("subtract", {"a": 1, "b": 2})):
        assert tools.call(name, arguments, 0).error
    trace = bench.expert_trace(task)
    assert trace is not None and trace.calls == [{"name": "add", "arguments": task.data}]
    for text, correct in ((f"It is <answer>{task.answer}</answer>", 1.0), ("<answer>0</answer>", 0.0)):
        messages = [{"role": "assistant", "content": text}]
        assert bench.score(task, Trajectory(task.id, [0], [1], [1], [0], [Component.ANSWER], messages)).metrics == {
            "correct": correct
        }


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ("[task] * 2", "2 tasks of the test split have the id 'test-0'"),
        ("[]", "the test split has no task"),
    ],
)
def test_a_bench_must_give_each_task_an_id_of_its_own(tmp_path: Path, tasks: str, reason: str) -> None:
    """Results are kept by id: of two tasks with one id the second was never played, and nothing said so."""
    body = "def load(config):\n    bench, task = Sums(), Sums().tasks('test')[0]\n"
    body += f"    bench.tasks = lambda *_: {tasks}\n"
    file = tmp_path / "own.py"
    file.write_text(BENCH.read_text().partition("def load(")[0] + body + "    return bench\n")
    config = composed("algo=eval", "bench=custom", f"bench.path={file}", f"runs_dir={tmp_path}")
    run = RunDirectory.create(config)
    assert run is not None
    with pytest.raises(UserError, match=reason):
        evaluate_only(config, run, StopRequest(), SimpleNamespace(say=print), None)  # type: ignore[arg-type]


def test_a_file_that_a_bench_of_the_users_lacks_is_no_fault_of_runs_dir(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def load(config):\n    return open('absent.txt')\n")
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        agentrl(tmp_path, "algo=grpo", "bench=custom", f"bench.path={file}", "dry_run=true")


def test_leave_one_out_by_hand() -> None:
    leave_one_out = load_attribute(str(ALGO), "leave_one_out")
    # 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5
    expected = torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    assert torch.equal(leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])), expected)


def test_the_algorithm_trains_on_the_bench(tmp_path: Path) -> None:
    """Of four scripted rollouts one calls the tool and answers: it gets A = 1 - 0, the others 0 - 1/3, doubled."""
    config = composed(*CUSTOM, "+bench.options.tasks=4", "+algo.options.scale=2", "rollout.num_generations=4")

    def script(task: Any, sample: int, turn: int) -> str:
        if sample:
            return "<answer>none</answer>"
        call = json.dumps({"name": "add", "arguments": task.data})
        return f"<answer>{task.answer}</answer>" if turn else f"<tool_call>\n{call}\n</tool_call>"

    trainer = make_trainer(config, tmp_path, script)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"task": 0, "prompt": trainer.tasks[0].prompt} for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    assert trainer._turn_rewards == [[0.0, 1.0], [0.0], [0.0], [0.0]]
    own = batch["completion_mask"].bool() & batch["tool_mask"].bool()
    for row, advantage in enumerate((2.0, -2 / 3, -2 / 3, -2 / 3)):
        assert batch["advantages"][row][own[row]].tolist() == pytest.approx([advantage] * int(own[row].sum()))
    trainer.compute_loss(trainer.model, batch).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trainer.model.parameters())


def test_a_bench_trains_on_its_own_score(tmp_path: Path) -> None:
    """Two updates of real training: what TRL logs as the reward is the mean score, whatever `reward` says."""
    keys = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "trainer.max_steps=2")
    config = composed("bench=custom", f"bench.path={OWN_SCORE}", "algo=grpo", "rollout.num_generations=4", *keys)
    assert config.reward.name == "matching"
    replies = ("{0}", "{0} {1}", "cow cow cow cow", "{1}")  # of "{0} {1}": 1/2, 1, 0 or 1/4, 1/2
    trainer = make_trainer(config, tmp_path, lambda task, sample, turn: replies[sample].format(*task.answer.split()))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    assert len(logged) == 2
    for line in logged:
        assert line["reward"] == pytest.approx(line["solve_rate"]) and 2 / 4 <= line["reward"] <= 2.25 / 4
    for task, earned in zip(trainer._batch, trainer._turn_rewards, strict=True):
        assert len(earned) == 1 and earned[0] in (0.0, 0.25, 0.5, 1.0), task
    assert any((old != new).any() for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            ("bench=custom", f"bench.path={OWN_SCORE}"),
            "bench=words rewards episodes itself: reward=matching is not read",
        ),
        ((), None),
    ],
)
def test_the_run_says_that_the_configured_reward_is_not_read(keys: tuple[str, ...], expected: str | None) -> None:
    config, said = composed("algo=grpo", *keys), []
    bench = load_bench(config.bench)
    tell_reward(config, bench, bench.tasks("train"), SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    assert said == ([] if expected is None else [expected])


def test_a_dry_run_looks_into_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("class Trainer:\n    pass\n")
    (tmp_path / "broken.py").write_text("raise KeyError('mine')\n")
    own = ("dry_run=true", f"runs_dir={tmp_path}", "algo=custom")
    check(composed(*own, f"algo.path={ALGO}"))
    with pytest.raises(UserError, match="Trainer must be a subclass of agentrl"):
        check(composed(*own, f"algo.path={tmp_path / 'other.py'}"))
    with pytest.raises(KeyError, match="mine"):  # with the traceback, which shows the line
        check(composed(*own, f"algo.path={tmp_path / 'broken.py'}"))


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("def load(config):\n    return object()")
    with pytest.raises(UserError, match=r"has no name, solve_metric, .* expert_trace; let its class inherit from"):
        load_bench(CustomBench(name="custom", path=str(tmp_path / "bare.py"), options={}))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py has no load"):
        load_bench(CustomBench(name="custom", path=str(tmp_path / "empty.py"), options={}))
    with pytest.raises(UserError, match=r"gone\.py is not a Python file"):
        load_attribute(str(tmp_path / "gone.py"), "load")
    (tmp_path / "other.py").write_text("class Trainer: pass")
    config = composed("algo=custom", f"algo.path={tmp_path / 'other.py'}")
    with pytest.raises(UserError, match="must be a subclass"):
        rl_trainer(config.algo)


def test_a_bench_that_uses_the_name_of_a_method_otherwise_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sized.py"
    file.write_text(BENCH.read_text().replace("self.count", "self.size"))
    with pytest.raises(UserError, match=r"the attribute size of the bench hides the method size"):
        load_bench(composed("bench=custom", f"bench.path={file}").bench)


@pytest.mark.slow
def test_a_file_with_keys_of_its_own_from_the_command_line(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine" / "bench").mkdir(parents=True)
    (tmp_path / "mine" / "bench" / "sums.yaml").write_text(shown)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    small = ("trainer.max_steps=1", "trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "eval.before=false")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "agentrl", "--config-dir", "mine", "bench=sums", "bench.options.largest=50"),
            *("algo=custom", f"algo.path={ALGO}", "reward=answer", "eval.limit=2", "name=sums", *small),
            *("rollout.max_completion_tokens=64", "rollout.max_turn_tokens=32", "rollout.max_turns=2"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = tmp_path.glob("runs/sums/s0-*")
    assert json.loads((run / "summary.json").read_text())["eval"]["after"]["correct"]["n"] == 2
    hashed = json.loads((run / "environment.json").read_text())
    assert {"bench.path", "algo.path"} <= set(json.dumps(hashed).replace('"', " ").split())


def test_a_file_of_ones_own_imports_those_beside_it_and_hides_no_library(tmp_path: Path) -> None:
    """Workers do not search the current directory, where a folder may be named like a library."""
    (tmp_path / "beside_it.py").write_text("LARGEST = 7")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("raise SystemExit('the wrong yaml')")
    (tmp_path / "mine.py").write_text(
        "from beside_it import LARGEST\n\ndef largest():\n    import yaml\n    return LARGEST"
    )
    code = "from agentrl.core.custom import load_attribute; import sys; print(load_attribute(sys.argv[1], 'largest')())"
    done = subprocess.run(
        [sys.executable, "-c", code, "mine.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONSAFEPATH": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("7\n", "")
