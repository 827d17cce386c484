"""The scripts that print tables refuse what cannot work before a run begins, and say when a run has failed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def call(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("out", "pact", "--seeds", "0"), "--seeds: 0 is no whole number above 0"),
        (("out", "pact", "--jobs", "-1"), "--jobs: -1 is no whole number above 0"),
        (("out", "hipo"), "hipo needs --data"),
        (("out", "nothing"), "invalid choice: 'nothing'"),
    ],
)
def test_smollm2_refuses_before_a_run(words: tuple[str, ...], refusal: str) -> None:
    done = call("compare_smollm2", *words)
    assert done.returncode == 2 and refusal in done.stderr and "Traceback" not in done.stderr


def test_table1_refuses_words_that_are_no_keys(tmp_path: Path) -> None:
    for words, refusal in ((("seed=a",), "seed=a: must be whole numbers"), (("foo=3", "seed=0"), "unknown key foo")):
        done = call("compare_table1", str(tmp_path), *words)
        assert done.returncode != 0 and refusal in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script", ["compare_smollm2", "compare_table1", "compare_methods", "compare_hipo", "compare_dual"]
)
def test_help_is_printed(script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ")


def test_smollm2_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("compare_smollm2")
    monkeypatch.setattr(script, "MODEL", tmp_path / "model")
    monkeypatch.setattr(script, "ENCODER", tmp_path / "encoder")
    assert script.missing("pact", None) == f"{tmp_path / 'model'} is missing; run: make smollm2"
    (tmp_path / "model").mkdir()
    assert script.missing("pact", None) == ""
    assert script.missing("hipo", tmp_path) == f"{tmp_path / 'encoder'} is missing; run: make minilm"
    (tmp_path / "encoder").mkdir()
    assert script.missing("hipo", tmp_path).startswith(f"--data={tmp_path} has no verih/test.json;")
    (tmp_path / "verih").mkdir()
    (tmp_path / "verih" / "test.json").touch()
    assert script.missing("hipo", tmp_path) == ""
    assert "has no toolhop, sys_ifeval/sys_ifeval.jsonl, tensortrust, sys_ifeval/ifeval.jsonl;" in script.missing(
        "baselines", tmp_path
    )


def test_smollm2_writes_a_mean_without_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("compare_smollm2")
    estimates = {"a": {"mean": 0.25, "lo": 0.1, "hi": 0.5}, "b": {"mean": 0.25, "lo": None, "hi": None}}
    assert [script.cell(estimates, name) for name in "abc"] == ["0.250 [0.100, 0.500]", "0.250", "-"]


def test_the_list_of_tables_shows_the_given_keys() -> None:
    done = call("reproduce", "pact_table1", "seed=0", "--list")
    assert "python benchmarks/compare_table1.py runs/pact_table1 seed=0\n" in done.stdout, done.stderr
