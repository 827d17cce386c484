"""The scripts that make the tables of the docs: PACT's Table 1, and everything with `make reproduce`."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentrl.config.compose import compose
from agentrl.config.rules import validate
from agentrl.config.shipped import CONF
from agentrl.store.identity import run_path
from tests.runs.test_runs import SMALL, lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def swept(name: str) -> dict[str, str]:
    content = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))
    params: dict[str, str] = content["hydra"]["sweeper"]["params"]
    return params


@pytest.mark.slow
def test_table_1_shows_what_the_sweep_runs(scripts: Any) -> None:
    rows = scripts("compare_table1").ROWS
    assert set(rows.values()) == set(swept("pact_table1")["experiment"].split(","))
    for experiment in set(rows.values()):
        validate(compose([f"experiment={experiment}"]))


def finish(overrides: list[str], solved: float) -> None:
    """Write the summary of a finished run."""
    folder = run_path(compose(overrides))
    folder.mkdir(parents=True)
    metrics = {name: {"mean": solved} for name in ("solve_r", "solve_p", "solve_f1", "solve_rate")}
    before = {name: {"mean": 0.3} for name in metrics}
    summary = {"status": "completed", "model": "tiny", "eval": {"before": before, "after": metrics}}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.slow
def test_the_cells_of_table_1_by_hand(scripts: Any, tmp_path: Path) -> None:
    table1, shared = scripts("compare_table1"), [f"runs_dir={tmp_path}"]
    slow = table1.Choice(2e-4)
    for seed, (ours, theirs) in enumerate([(0.5, 0.6), (0.6, 0.8), (0.7, 0.7)]):
        finish([*table1.row_keys("PACT", shared), f"seed={seed}"], ours)
        finish([*table1.row_keys("LUFFY", shared, slow), f"seed={seed}"], theirs)
        finish([*table1.row_keys("LUFFY", shared), f"seed={seed}"], 0.0)  # at a rate that was not chosen
    finish([*table1.row_keys("LUFFY", shared, slow), "seed=3"], 0.7)  # PACT has no such seed
    rows = ("LUFFY", "SRFT", table1.AFTER_SFT, "PACT")
    found = {row: table1.find(row, [0, 1, 2, 3, 4], shared, {"LUFFY": slow}) for row in rows}
    _, _, before, luffy, *others = table1.table(found, {"LUFFY": slow})
    assert before == "| before training | - | - | 0.300 | 0.300 | 0.300 | 0.300 | - |"
    # means .7 and .6; gaps .1, .2, 0 have the standard error .1 / sqrt(3), and t of 2 degrees of freedom is 4.303
    assert luffy.startswith("| LUFFY | 0.0002 | 4 | 0.700 [0.570, 0.830] |")
    assert luffy.endswith("| +0.100 [-0.148, +0.348] |")
    assert [line.split(" | ")[1:3] for line in others] == [["-", "0"], ["-", "0"], ["-", "3"]]
    assert table1.differences(found | {table1.VARIANT: found["PACT"], "GRPO, trajectory": found["LUFFY"]}) == [
        "PACT, best variant minus GRPO, trajectory: -0.100 [-0.348, +0.148] in the solve rate, 3 seeds"
    ]
    assert "not run" in others[0] and others[2].startswith("| PACT | - | 3 | 0.600 [0.352, 0.848] |")


@pytest.mark.slow
def test_every_table_has_its_line_and_its_commands_are_understood(scripts: Any) -> None:
    reproduce = scripts("reproduce")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "reproduce.py", "--list"], capture_output=True, text=True, check=True
    )
    for name, table in reproduce.TABLES.items():
        assert any(line.startswith(f"{name} ") and f"{table.hours:.1f} h" in line for line in done.stdout.splitlines())
        assert (ROOT / table.page).is_file()
        for command in table.commands:
            words = shlex.split(reproduce.shown(reproduce.filled(command, ["hardware.threads=1"])))
            if words[0] == "python":
                assert (ROOT / words[1]).is_file()
                continue
            names = [word.partition("=")[2] for word in words if word.startswith("sweep=")]
            assert all((CONF / "sweep" / f"{name}.yaml").is_file() for name in names)
            single = [word.split(",")[0] for word in words[1:] if word != "-m" and not word.startswith("sweep=")]
            validate(compose(single))


def test_every_sweep_of_the_papers_pages_is_reproduced(scripts: Any) -> None:
    commands = " ".join(command for table in scripts("reproduce").TABLES.values() for command in table.commands)
    for page in ("pact_paper", "hipo_paper", "methods"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for name in (path.stem for path in (CONF / "sweep").glob("*.yaml")):
            assert f"sweep={name} " not in text.replace("`", " ") or f"sweep={name} " in commands, (page, name)


def test_keys_and_tables_of_the_command_line(scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    reproduce, ran = scripts("reproduce"), []

    class Done:
        def __init__(self, words: list[str]) -> None:
            ran.append(words)
            self.returncode = 1 if "sweep=pact_q" in words else 0

    monkeypatch.setattr(reproduce.subprocess, "run", Done)
    monkeypatch.setattr(sys, "argv", ["reproduce", "pact_q", "hipo", "seed=0", "hardware.threads=1"])
    assert reproduce.main() == 1
    assert ran[0][-2:] == ["seed=0", "hardware.threads=1"] and ran[1][-2:] == ["--", "hardware.threads=1"]
    assert "failed: pact_q" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["reproduce", "pact_table9"])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert "no such table: pact_table9; choose from methods, pact_table1" in capsys.readouterr().err


@pytest.mark.slow
def test_rates_are_tuned_alike_and_on_tasks_of_their_own(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table1, shared, done = scripts("compare_table1"), [f"runs_dir={tmp_path}"], []

    def train(jobs: list[list[str]], workers: int) -> bool:
        for words in jobs:
            config = compose(words)
            if table1.finished(run_path(config)):
                continue
            assert (config.seed, config.bench.data_seed, config.eval.before) == (100, 1, False)
            done.append((config.algo.name, config.trainer.learning_rate, config.model.path))
            solved = {2e-4: 0.6, 6e-4: 0.6, 1.8e-3: 0.1, 9e-3: 0.9}.get(config.trainer.learning_rate, 0.0)
            solved += 0.05 * (getattr(config.algo, "dual_clip", None) == 3)
            finish(words, solved)
            path = run_path(config)
            (path / "model").mkdir()
            for name, text in {
                "config.yaml": "model: {name: tiny, family: tiny}",
                "status.json": "{}",
                "model/config.json": "{}",
            }.items():
                (path / name).write_text(text)
        return True

    monkeypatch.setattr(table1, "RATES", tmp_path / "rates.json")
    monkeypatch.setattr(table1, "train", train)
    monkeypatch.setattr(
        table1, "ROWS", {row: table1.ROWS[row] for row in ("SFT", "PACT", table1.AFTER_SFT, table1.VARIANT)}
    )
    assert table1.tune(shared, 1)
    chosen = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
    rates = {"SFT": 9e-3, "PACT": 2e-4, table1.AFTER_SFT: 2e-4, table1.VARIANT: 2e-4}
    assert {row: one["rate"] for row, one in chosen.items()} == rates
    tried = {"6.7e-05": 0.0, "0.0002": 0.6, "0.0006": 0.6, "0.0018": 0.1, "0.0054": 0.0}
    assert chosen["PACT"]["tried"] == tried, "of equals, the smaller rate"
    best = run_path(compose([*table1.row_keys("SFT", shared, table1.Choice(9e-3)), *table1.VALIDATION]))
    assert [path == str(best / "model") for name, _, path in done if name == "grpo"] == [True] * 5
    assert chosen[table1.VARIANT]["keys"] == ["algo.dual_clip=3"]
    assert [rate for name, rate, _ in done if name == "pact"][5:13] == [2e-4] * 8, "variants are tried at PACT's rate"
    assert table1.read_choices()[table1.VARIANT] == table1.Choice(2e-4, ("algo.dual_clip=3",))


def test_the_rates_of_table_1_are_those_that_did_best(scripts: Any) -> None:
    table1 = scripts("compare_table1")
    chosen = json.loads(table1.RATES.read_text(encoding="utf-8"))
    late = [table1.AFTER_SFT, table1.VARIANT]
    assert list(chosen) == [row for row in table1.ROWS if row not in late] + late
    variants = chosen[table1.VARIANT]["variants"]
    assert [*variants] == [*table1.VARIANTS] and variants[chosen[table1.VARIANT]["keys"][0]] == max(variants.values())
    for row, one in chosen.items():
        assert len(one["tried"]) == 5 and one["tried"][f"{one['rate']:g}"] == max(one["tried"].values()), row


@pytest.mark.slow
def test_matchtir_after_sft_trains_from_the_run_of_sft(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_table1.py", str(tmp_path), *SMALL, "seed=1"])
    table1, tables = scripts("compare_table1"), []
    monkeypatch.setattr(table1, "ROWS", {row: table1.ROWS[row] for row in ("SFT", table1.AFTER_SFT, "PACT")})
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"^0$"):
            table1.main()
        tables.append(capsys.readouterr())
    assert tables[0].out == tables[1].out and tables[1].err == ""  # the second time there is nothing to train
    rows = [line for line in tables[0].out.splitlines() if line.startswith("|")]
    seeds = {line.split(" | ")[0][2:]: line.split(" | ")[2] for line in rows[3:]}
    assert "SFT -> MatchTIR minus SFT: " in tables[0].out
    assert seeds == {"SFT": "1", "SFT -> MatchTIR": "1", "PACT": "1"}
    (second,) = [path.parent for path in tmp_path.glob("*/*/config.yaml") if "grpo" in path.parent.parent.name]
    (first,) = tmp_path.glob("*-sft/*/model")
    trained = yaml.safe_load((second / "config.yaml").read_text(encoding="utf-8"))
    assert str(first) in trained["model"]["path"] or str(first.parent) in trained["model"]["path"]
    assert trained["algo"]["advantage"]["lone_raw"] is True and len(lines(second / "metrics.jsonl")) == 4
