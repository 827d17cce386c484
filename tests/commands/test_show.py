"""`agentrl show`: filters, marks, and the two evaluations side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from agentrl.commands import show
from agentrl.config.compose import compose
from agentrl.core.errors import UserError
from agentrl.report.rollouts import view
from agentrl.report.terminal import compare_items, parse_filter, rollout_numbers, rollout_panel
from agentrl.runner.start import start
from agentrl.store.run import RunDirectory


def line(step: int, task: str, reward: float, errors: int = 0) -> dict[str, Any]:
    return {
        "step": step, "task_id": task, "prompt": "PROMPT", "rewards": [reward], "metrics": {"solve_rate": reward},
        "tokens": ["think", "<call>", "[seen]"], "component": [1, 2, 3], "turn": [0, 0, 0], "policy_mask": [1, 1, 0],
        "advantages": [0.5, 0.5, 0.0], "calls": [{"error": True}] * errors, "truncated": False, "surrogate": "L^h",
        "sft": {"tokens": ["I", " call", "<c>"], "component": [1, 1, 2], "weight": [1.0, 0.0, 0.8]},
    }  # fmt: skip


def item(name: str, text: str, solved: float) -> dict[str, Any]:
    messages = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "[bold]found[/bold]"},
        {"role": "assistant", "content": text},
    ]
    return {
        "id": name, "sample": 0, "cluster": name, "metrics": {"solve_rate": solved}, "truncated": False, "calls": 1,
        "tool_errors": 0, "turns": 2, "tokens": 9, "messages": messages,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    assert start(compose([f"runs_dir={tmp_path}", "dry_run=true"])) == 0
    directory = RunDirectory(next(tmp_path.glob("*/*/status.json")).parent)
    for step in (0, 4, 8):
        for task, reward, errors in (("a", 1.0, 0), ("b", 0.25, 2)):
            directory.append(directory.rollouts_path, line(step, task, reward, errors))
    directory.append(directory.eval_dir / "before.jsonl", item("q", "old answer", 0.0))
    directory.append(directory.eval_dir / "after.jsonl", item("q", "new answer", 1.0))
    return directory


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = show.main(list(arguments))
    return code, capsys.readouterr().out


def styled(renderable: RenderableType, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=width, color_system="standard").print(renderable)
    return stream.getvalue()


def test_a_filter_needs_all_of_its_comparisons() -> None:
    of = rollout_numbers(view(line(4, "a", 0.25, errors=2)))
    assert parse_filter("reward<1, errors>=2,solve_rate=0.25,step=4")(of)
    assert not parse_filter("reward<1,errors>2")(of)
    assert not parse_filter("r_sys<0.7")(of)  # a rollout without the metric does not pass
    assert parse_filter("")(of)
    for wrong in ("reward", "reward<x", "import os", "reward < 1 or 1"):
        with pytest.raises(UserError, match="is not a comparison"):
            parse_filter(wrong)


def test_first_and_last_step_are_shown_unless_asked_otherwise(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, str(run.path))
    assert code == 0 and "a after 0 updates" in text and "b after 8 updates" in text and "after 4" not in text
    assert "reward 0.250" in text and "advantage +0.500" in text and "failed calls: 2" in text and "L^h" in text
    assert "PROMPT" not in text and "PROMPT" in shown(capsys, str(run.path), "prompt=true")[1]
    _, text = shown(capsys, str(run.path), "step=4", "where=errors>0")
    assert "b after 4 updates" in text and "a after" not in text
    _, text = shown(capsys, str(run.path), "step=all", "task=a", "limit=2")
    assert text.count("updates:") == 2 and "2 of 3 shown" in text
    assert shown(capsys, str(run.path), "where=reward>5") == (1, f"Nothing in {run.path} passes these filters.\n")


def test_a_task_is_named_by_its_whole_id_or_by_a_part(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("hop-test-7", "hop-test-77", "hop-test-78"):
        run.append(run.rollouts_path, line(8, task, 1.0))
        run.append(run.eval_dir / "after.jsonl", item(task, f"answer of {task}", 1.0))

    def named(task: str, source: str) -> int:
        found = shown(capsys, str(run.path), f"source={source}", f"task={task}", "limit=9")[1]
        return found.count("hop-test-7") - found.count("answer of")

    for source in ("rollouts", "eval"):
        assert [named(task, source) for task in ("hop-test-7", "test-7", "test-77", "st-7", "hop")] == [1, 1, 1, 3, 3]


def test_marks_follow_what_was_trained_on() -> None:
    text = styled(rollout_panel(view(line(0, "a", 1.0)), prompt=False))
    underlined, dim = "\x1b[4;36mthink", "\x1b[2m[seen]"  # cyan reasoning with a positive advantage; context
    assert underlined in text and dim in text
    assert "\x1b[36mI" in text and "\x1b[2m call" in text  # tokens of the expert trace with weight 0 are dim


def test_the_same_item_before_and_after(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, str(run.path), "source=eval")
    assert code == 0 and text.index("old answer") < text.index("new answer")
    assert "[bold]found[/bold]" in text  # text from a tool is not read as markup
    side_by_side = styled(next(compare_items([item("q", "old", 0)], [item("q", "new", 1)], 160)), width=160)
    assert any("old" in row and "new" in row for row in side_by_side.splitlines())
    assert shown(capsys, str(run.path), "source=eval", "where=solve_rate<1")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["step=3"], "step=3 was not logged; logged are 0 to 8"),
        (["source=eval", "step=3"], "step=3: only rollouts have it; leave it out, or set source=rollouts"),
        (["limit=0"], "limit=0: must be a whole number of at least 1"),
        (["limit=some"], "limit=some: must be a whole number"),
        (["source=disk"], "source=disk is not a choice"),
        (["colour=red"], "this command has no key colour"),
        (["where=rewrd<1"], "where: nothing here has a number rewrd; did you mean reward"),
        (["where=solve_rat<1", "source=eval"], "where: nothing here has a number solve_rat; did you mean solve_rate"),
    ],
)
def test_mistakes_are_one_line(run: RunDirectory, arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        show.main([str(run.path), *arguments])
    with pytest.raises(UserError, match="is not a run directory"):
        show.main([str(run.eval_dir)])


def test_an_evaluation_without_training_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(compose([f"runs_dir={tmp_path}", "algo=eval", "dry_run=true"])) == 0
    directory = RunDirectory(next(tmp_path.glob("*/*/status.json")).parent)
    with pytest.raises(UserError, match="has evaluated nothing yet"):
        show.main([str(directory.path)])
    for name in ("q", "r"):
        directory.append(directory.eval_dir / "after.jsonl", item(name, f"answer of {name}", 1.0))
    code, text = shown(capsys, str(directory.path), "limit=1")
    assert code == 0 and "answer of q" in text and "answer of r" not in text and "1 of 2 shown" in text
    assert shown(capsys, str(directory.path), "where=solve_rate<1")[0] == 1
