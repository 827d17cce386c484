"""What a person sees: whole tables in a pipe, a line that bars do not paint over, no long plan in silence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from agentrl.config.compose import compose
from agentrl.core.console import STOPPING, RunConsole, make_console
from agentrl.runner.start import start

LONG = "a text of more than eighty columns, in which nothing may be cut and nothing folded: " + "x" * 60


def test_a_table_in_a_pipe_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("first", "second")
    table.add_row(LONG, LONG)
    out = io.StringIO()
    make_console(out).print(table)
    (row,) = (line for line in out.getvalue().splitlines() if "a text" in line)
    assert row.count(LONG) == 2


def test_the_estimate_in_a_pipe_is_whole(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert start(compose([f"runs_dir={tmp_path}", "dry_run=true"])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("sampling, GiB" in line and "KV cache" in line and line.endswith("│") for line in lines)
    assert any("update, GiB" in line and "activations" in line and "logits" in line for line in lines)


def test_the_bars_say_that_a_run_is_stopping() -> None:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    said = ""
    with RunConsole(Console(file=out, force_terminal=True, width=100), lambda: said) as console:
        console.start("train", 10)
        console._progress.refresh()
        assert STOPPING not in out.getvalue()
        said = STOPPING
        console._progress.refresh()
    assert STOPPING in "".join(out.getvalue().splitlines()[-2:]), "it stands below the bars when they are gone"


@pytest.mark.parametrize(
    ("typed", "steps", "words"),
    [
        ("algo=hipo model=tiny", 60, "use model=tiny_hif"),
        ("algo=dpo model=tiny", 60, "use model=tiny_hif"),
        ("algo=pact model=tiny_hif bench=minihop", 32, "use model=tiny"),
        ("algo=hipo model=qwen2.5-0.5b", 36_000, "36,000 updates and up to"),
        ("model=qwen2.5-0.5b", 168, "sampled tokens are planned on a CPU"),
        ("algo=hipo", 60, ""),
        ("algo=hipo model=qwen2.5-0.5b hardware=gpu", 36_000, ""),
        ("algo=hipo model=qwen2.5-0.5b trainer.max_steps=5", 5, ""),
    ],
)
def test_a_long_run_on_a_cpu_is_not_planned_in_silence(
    tmp_path: Path, capsys: Any, typed: str, steps: int, words: str
) -> None:
    assert start(compose([f"runs_dir={tmp_path}", "dry_run=true", *typed.split()])) == 0
    said = capsys.readouterr()
    (row,) = (line for line in said.out.splitlines() if "optimizer updates" in line)
    assert f" {steps:,} " in row
    assert words in said.err
    assert bool(words) == bool([line for line in said.err.splitlines() if "tiny" in line or "planned" in line])
