"""The commands for runs that exist: ls, compare, resume, and tables as files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.commands import compare, ls, merge, report, resume, show
from agentrl.commands import eval as eval_command
from agentrl.config.compose import compose
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.runner.start import start
from agentrl.store.identity import flatten, run_path
from agentrl.store.run import RunDirectory
from tests.report.test_report import fake_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO with seeds 0 and 1 completed, PACT failed. They are made once, because composing is slow."""
    tmp_path = tmp_path_factory.mktemp("runs")
    for seed, after in ((0, 0.4), (1, 0.6)):
        run = fake_run(tmp_path, after, "algo=grpo", f"seed={seed}")
        run.write_json(run.summary_path, {**(run.summary() or {}), "solve_metric": "solve_rate"})
    failed = fake_run(tmp_path, 0.5, "algo=pact", "trainer.learning_rate=1e-4")
    failed.summary_path.unlink()
    failed.set_status("failed", error="no more memory", max_steps=24)
    return tmp_path


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of these runs for each test."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    ls.main([*map(str, arguments), "--json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_ls_shows_the_status_of_each_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {(run["algo"], run["seed"]): run for run in listed(capsys, runs)}
    assert set(found) == {("grpo", 0), ("grpo", 1), ("pact", 0)}
    done, failed = found["grpo", 1], found["pact", 0]
    assert (done["status"], done["model"], done["bench"], done["step"]) == ("completed", "tiny", "minihop", 24)
    assert (done["metric"], done["after"]["mean"], done["before"]["mean"]) == ("solve_rate", 0.6, 0.3)
    assert (failed["status"], failed["error"], failed["after"]) == ("failed", "no more memory", None)
    assert (failed["step"], failed["max_steps"]) == (2, 24)  # as far as metrics.jsonl goes
    assert ls.main([str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "solve_rate 0.600 [0.500, 0.700]" in shown and "2/24" in shown  # output to a pipe is not cut at 80 columns


@pytest.mark.parametrize(
    ("filters", "seeds"),
    [
        (["algo=grpo"], {("grpo", 0), ("grpo", 1)}),
        (["algo=gr*", "seed=1"], {("grpo", 1)}),
        (["algo=grpo,pact", "status=failed"], {("pact", 0)}),
        (["trainer.learning_rate=0.0001"], {("pact", 0)}),
        (["name=minihop-tiny-pact"], {("pact", 0)}),
        (["bench=toolhop"], set()),
    ],
)
def test_ls_filters_runs(
    filters: list[str], seeds: set[tuple[str, int]], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {(run["algo"], run["seed"]) for run in listed(capsys, runs, *filters)} == seeds
    assert ls.main([str(runs), *filters]) == int(not seeds)


@pytest.mark.parametrize("verb", [show.main, resume.main, merge.main], ids=["show", "resume", "merge"])
def test_a_directory_of_runs_is_refused_with_the_latest_runs(verb: Callable[[list[str]], int], runs: Path) -> None:
    for age, path in enumerate(sorted(runs.glob("*/[!.]*/status.json"))):
        os.utime(path, (1e9 + age, 1e9 + age))
    names = [str(path.parent) for path in sorted(runs.glob("*/[!.]*/status.json"), reverse=True)]
    draft = Path(names[0]).parent / ".new-run"  # another command is making it, and renames it soon
    draft.mkdir()
    (draft / "status.json").touch()
    with pytest.raises(UserError) as caught:
        verb([str(runs)])
    assert str(caught.value) == (
        f"{runs} is not a run directory but holds some; name one, e.g. the latest: {', '.join(names)} "
        f"(agentrl ls {runs} lists them)"
    )
    with pytest.raises(UserError, match=f"name one, e.g. the latest: {names[0]} .agentrl ls"):
        verb([str(Path(names[0]).parent)])


def test_ls_marks_dead_and_damaged_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo = sorted(runs.glob("minihop-tiny-grpo/*"))
    RunDirectory(grpo[0]).set_status("running", pid=2**22 + 1, host=socket.gethostname())  # no such process
    (grpo[1] / "status.json").write_text("{")
    found = {run["path"]: run["status"] for run in listed(capsys, runs)}
    assert found[str(grpo[0])] == "dead" and found[str(grpo[1])] == "damaged"
    RunDirectory(grpo[0]).set_status("running", pid=os.getpid(), host=socket.gethostname())
    assert {run["path"]: run["status"] for run in listed(capsys, runs)}[str(grpo[0])] == "running"


def test_ls_refuses_what_it_cannot_list(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ls.main([str(runs / "nowhere")])
    with pytest.raises(UserError, match=r"trainer\.learning_rat: no run here has that key; did you mean"):
        ls.main([str(runs), "trainer.learning_rat=1"])
    with pytest.raises(UserError, match="status=complete is not a choice; did you mean completed"):
        ls.main([str(runs), "status=complete"])
    with pytest.raises(UserError, match="--Json is not a flag; did you mean --json"):
        ls.main([str(runs), "--Json"])
    assert ls.main([str(runs), "status=comp*,dead"]) == 0
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match="no directory runs/ here"):
        ls.main([])
    (runs / "runs").mkdir()
    assert ls.main([]) == 1 and "There is no run." in capsys.readouterr().out


def test_compare_pairs_two_runs_by_item(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(next(runs.glob(f"minihop-tiny-grpo/s{seed}-*"))) for seed in (0, 1))
    assert compare.main([first, second]) == 0
    shown = capsys.readouterr().out
    # Item a: 0.4 and 0.6, item b: 0 and 0. Differences 0.2 and 0, mean 0.1.
    row = next(line for line in shown.splitlines() if line.startswith("| solve_rate"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["0.400 [0.300, 0.500]", "0.600 [0.500, 0.700]"]
    assert row.split("|")[4].strip().startswith("+0.100") and row.split("|")[5].strip() == "2"
    assert "paired by item" in shown
    assert [line for line in shown.splitlines() if line.startswith("| seed")] == ["| seed | 0 | 1 |"]


def test_compare_pairs_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, after in ((0, 0.5), (1, 0.9)):
        fake_run(runs, after, "algo=grpo", f"seed={seed}", "name=faster", "trainer.learning_rate=1e-3")
    unfinished = fake_run(runs, 0.5, "algo=grpo", "seed=2", "name=faster", "trainer.learning_rate=1e-3")
    unfinished.summary_path.unlink()
    unfinished.set_status("interrupted")
    out = runs / "c.csv"
    assert compare.main([str(runs / "minihop-tiny-grpo"), str(runs / "faster"), f"out={out}"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| solve_rate"))
    assert row.split("|")[4].strip().startswith("+0.200")  # 0.1 and 0.3
    assert "paired by seed" in shown and "B has the results of 2 of its 3 runs." in shown
    assert [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| trainer.")] == [
        "trainer.learning_rate"
    ]
    assert "| seed" not in shown
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert {(row["arm"], row["phase"], row["seeds"]) for row in rows} >= {("learning_rate=0.001", "after", "2")}


def test_compare_refuses_runs_that_do_not_compare(runs: Path) -> None:
    done, failed = str(runs / "minihop-tiny-grpo"), str(runs / "minihop-tiny-pact")
    for arguments, message in (
        ([done], "name two runs"),
        ([done, failed], r"has no result yet \(failed\)"),
        ([str(runs), done], r"holds 2 different settings \(grpo, pact\)"),
        ([done, str(runs / "none")], "does not exist"),
        ([done, done, "out=x.doc"], r"must end in \.md, \.tex or \.csv"),
    ):
        with pytest.raises(UserError, match=message):
            compare.main(arguments)


def test_compare_checks_its_file_before_it_prints(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = str(runs / "minihop-tiny-grpo")
    with pytest.raises(UserError, match="must end in"):
        compare.main([done, done, "out=x.doc"])
    assert capsys.readouterr().out == ""


def test_a_setting_of_null_is_shown_as_null(tmp_path: Path) -> None:
    for keys in ([], ["eval.limit=10"]):
        fake_run(tmp_path, 0.4, "algo=grpo", *keys)
    with pytest.raises(UserError, match=r"holds 2 different settings \((limit=null, limit=10|limit=10, limit=null)\)"):
        compare.main([str(tmp_path), str(tmp_path)])


def test_a_report_of_evaluations_and_runs(tmp_path: Path) -> None:
    fake_run(tmp_path, 0.4, "algo=grpo")
    evaluated = fake_run(tmp_path, 0.3, "algo=eval")
    evaluated.write_json(evaluated.summary_path, {**(evaluated.summary() or {}), "steps": 0})
    assert report.main([str(tmp_path)]) == 0
    assert "| eval | 1 | 0 | 0 | 0 | 1,000 |" in (tmp_path / "report.md").read_text("utf-8")


def test_a_report_as_csv_and_latex(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(runs / "minihop-tiny-grpo"), f"out={runs / 'table.csv'}"]) == 0
    rows = list(csv.DictReader((runs / "table.csv").open(encoding="utf-8")))
    (after,) = [row for row in rows if (row["phase"], row["metric"], row["group"]) == ("after", "solve_rate", "")]
    assert (after["bench"], after["arm"], float(after["mean"]), after["seeds"]) == ("minihop", "grpo", 0.5, "2")
    (hops,) = [row for row in rows if row["group"] == "hops"]
    assert (hops["value"], float(hops["mean"])) == ("3", 0.25)  # half of the value of each seed
    assert report.main([str(runs / "minihop-tiny-grpo"), f"out={runs / 'table.tex'}"]) == 0
    text = (runs / "table.tex").read_text(encoding="utf-8")
    assert r"solve\_rate" in text and r"\toprule" in text and "fter training" in text
    assert "solve_rate" not in text.replace(r"solve\_rate", "")
    assert report.main([str(runs / "minihop-tiny-grpo"), f"out={runs / 'table.md'}"]) == 0
    assert not (runs / "table.html").exists() and "# minihop-tiny-grpo" in (runs / "table.md").read_text("utf-8")
    with pytest.raises(UserError, match=r"must end in \.html, \.md, \.tex or \.csv"):
        report.main([str(runs), "out=table.doc"])


def test_resume_works_after_the_directory_was_moved(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = next((runs / "minihop-tiny-pact").iterdir())
    moved = runs / "elsewhere=1" / "my run"
    moved.parent.mkdir()
    shutil.move(place, moved)
    started: list[RunDirectory] = []
    monkeypatch.setattr("agentrl.runner.start.launch", lambda run, config, *_: started.append(run) or 0)
    before = RunDirectory(moved).config()
    assert resume.main([str(moved), "trainer.save_steps=3"]) == 0
    assert started[0].path == moved and f"Resuming: {moved}" in capsys.readouterr().out.replace("\n", "")
    after = RunDirectory(moved).config()
    assert (after.trainer.save_steps, after.trainer.learning_rate) == (3, before.trainer.learning_rate)
    for arguments, message in (
        ([], "name one run directory"),
        ([str(moved), "again"], "name one run directory"),
        ([str(runs)], "is not a run directory"),
        ([str(moved), "trainer.learning_rate=1"], r"cannot change trainer\.learning_rate; it can change .*save_steps"),
        ([str(moved), "runs_dir=x"], "cannot change runs_dir"),
        ([str(moved), "trainer.save_step=3"], r"unknown key trainer\.save_step; did you mean trainer\.save_steps"),
        ([str(moved), "trainer.save_steps=often"], r"trainer\.save_steps"),
    ):
        with pytest.raises(UserError, match=message):
            resume.main(arguments)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("judge.base_url", ["algo=hipo", "judge=openai", "judge.model=m", "judge.cache=verdicts"]),
        ("algo.endpoint.base_url", ["algo=eval", "algo.endpoint.base_url=http://127.0.0.1:2/v1"]),
    ],
)
def test_only_resume_may_change_the_address_of_a_server(
    key: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.runner.start.launch", lambda run, config, *_: started.append(config) or 0)
    monkeypatch.setattr("agentrl.runner.start.check_reach", lambda config: [])
    words, started = [*words, f"runs_dir={tmp_path}"], list[Config]()
    moved = f"{key}=http://127.0.0.1:1/v1"
    assert start(compose(words)) == 0
    run = RunDirectory(run_path(started[0]))
    with pytest.raises(UserError, match=f"other values of {re.escape(key)}.*; if it has moved, agentrl resume "):
        start(compose([*words, moved, f"run_id={run.path.name}"]))
    assert resume.main([str(run.path), moved]) == 0
    assert run_path(started[1]) == run.path and run.config() == started[1]
    assert flatten(run.config().model_dump())[key] == "http://127.0.0.1:1/v1"


def test_resume_shows_a_completed_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main([str(next(runs.glob("minihop-tiny-grpo/s0-*")))]) == 0
    assert "This run is complete" in capsys.readouterr().out


def test_eval_writes_its_tables_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(tmp_path, 0.4, "algo=eval", "bench=minihop")
    monkeypatch.setattr("agentrl.commands.eval.start", lambda config: 0)
    words = ["model=tiny", "bench=minihop", f"runs_dir={tmp_path}"]
    for kind in ("md", "tex", "csv"):
        assert eval_command.main([*words, f"out={tmp_path / f'table.{kind}'}"]) == 0
    shown = capsys.readouterr().out
    assert "| solve_rate | 0.400 [0.300, 0.500] |" in shown
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() in shown
    assert r"solve\_rate & 0.400 [0.300, 0.500]" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [float(row["mean"]) for row in rows if (row["phase"], row["group"]) == ("after", "")] == [0.4]
