"""Reports: how runs form arms, pooled numbers against hand-computed ones, and a page that escapes hostile text."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image as mpl_image
import numpy as np
import pytest

from agentrl.core.errors import UserError
from agentrl.report.arms import (
    Arm,
    compare_arms,
    compare_by_item,
    difference_pairs,
    distinguishing_keys,
    group_into_arms,
    list_metrics,
    load_records,
    pool_metric,
)
from agentrl.report.curves import band
from agentrl.report.page import build_report, render
from agentrl.report.plots import PANELS
from agentrl.report.rollouts import first_and_last, stretches, view
from agentrl.runner.start import start
from agentrl.store.run import RunDirectory
from tests.support.command_line import agentrl
from tests.support.helpers import composed

HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(2)>"


def interval(mean: float, lo: float, hi: float) -> dict[str, float]:
    return {"mean": mean, "lo": lo, "hi": hi, "n": 4}


def fake_run(runs: Path, after: float, *overrides: str) -> RunDirectory:
    """Make a run directory as the program does, with results written by hand."""
    config = composed(f"runs_dir={runs}", "dry_run=true", *overrides)
    assert start(config) == 0
    (path,) = (p.parent for p in runs.glob("*/*/status.json") if json.loads(p.read_text())["status"] == "dry_run")
    run = RunDirectory(path)
    for step in (1, 2):
        run.append(run.metrics_path, {"step": step, "reward": after + step, "loss/total": 0.5})
    record: dict[str, Any] = {
        "step": 0, "task_id": "t", "prompt": HOSTILE, "rewards": [0.25, 1.0], "metrics": {"solve_rate": 1.0},
        "tokens": ["I", " call", "<tool_call>", "x", HOSTILE], "component": [1, 1, 2, 3, 4], "turn": [0, 0, 0, 0, 1],
        "policy_mask": [1, 1, 1, 0, 1], "advantages": [0.5, 0.5, 0.5, 0.0, -1.0], "calls": [{"error": True}],
        "truncated": False,
    }  # fmt: skip
    run.append(run.rollouts_path, record)
    for item in ("a", "b"):
        line = {"id": item, "cluster": item, "metrics": {"solve_rate": after if item == "a" else 0.0}}
        line |= {"calls": 1, "tool_errors": 0, "truncated": False}
        run.append(run.eval_dir / "after.jsonl", line)
    phases = {"before": interval(0.3, 0.2, 0.4), "after": interval(after, after - 0.1, after + 0.1)}
    summary = {
        "status": "completed", "algo": config.algo.name, "steps": 24, "wall_s": 10.0, "tokens": {"seen": 1000},
        "eval": {phase: {"solve_rate": cell} for phase, cell in phases.items()},
        "by": {"hops": {"3": {"after": {"solve_rate": interval(after / 2, 0, 1)}}}},
    }  # fmt: skip
    run.write_json(run.summary_path, summary)
    run.set_status("completed")
    return run


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for seed, grpo, pact in ((0, 0.4, 0.5), (1, 0.5, 0.7), (2, 0.6, 0.6)):
        fake_run(folder, grpo, "algo=grpo", f"seed={seed}")
        fake_run(folder, pact, "algo=pact", f"seed={seed}")
    return folder


@pytest.fixture
def runs(made_runs: Path, tmp_path: Path) -> Path:
    """Three runs of grpo and three of pact, for one test alone."""
    return shutil.copytree(made_runs, tmp_path, dirs_exist_ok=True)


def test_arms_are_named_by_as_few_keys_as_possible(runs: Path) -> None:
    keys, arms = group_into_arms(load_records([runs]))
    assert keys == ["algo.name"]  # dozens of keys differ between grpo and pact, and follow from it
    assert {arm.label: [run.seed for run in arm.runs] for arm in arms} == {"grpo": [0, 1, 2], "pact": [0, 1, 2]}
    fake_run(runs, 0.1, "algo=pact", "seed=0", "algo.q=0.9")
    keys, arms = group_into_arms(load_records([runs]))
    assert keys == ["algo.name", "algo.q"]
    assert [arm.label for arm in arms if arm.values[1] == 0.9] == ["pact q=0.9"]


def test_keys_that_follow_from_others_are_left_out() -> None:
    settings = [{"a": i // 2, "b": i % 2, "c": i % 2 + 5, "seed": i, "d": 1} for i in range(4)]
    assert distinguishing_keys(settings) == ["a", "b"]


def test_seeds_are_pooled_by_hand_computed_t_intervals(runs: Path) -> None:
    _, (grpo, pact) = group_into_arms(load_records([runs]))
    assert list_metrics([grpo, pact]) == ["solve_rate"]
    found = pool_metric(grpo, "after", "solve_rate")
    # mean 0.5, sd 0.1, t(0.975, 2) = 4.302653: half width 4.302653 * 0.1 / sqrt(3) = 0.248414
    assert found is not None and found.mean == pytest.approx(0.5)
    assert found.hi - found.mean == pytest.approx(0.248414, abs=1e-5)
    # differences by seed 0.1, 0.2, 0.0: mean 0.1, sd 0.1
    gap = compare_arms(grpo, pact, "solve_rate")
    assert gap is not None and (gap.mean, gap.n) == (pytest.approx(0.1), 3)
    assert gap.lo == pytest.approx(0.1 - 0.248414, abs=1e-5)
    split = pool_metric(grpo, "after", "solve_rate", ("hops", "3"))
    assert split is not None and split.mean == pytest.approx(0.25)


def test_one_seed_keeps_the_interval_over_items(tmp_path: Path) -> None:
    fake_run(tmp_path, 0.4, "algo=grpo")
    fake_run(tmp_path, 0.6, "algo=pact")
    _, (grpo, pact) = group_into_arms(load_records([tmp_path]))
    one = pool_metric(grpo, "after", "solve_rate")
    assert one is not None and (one.mean, one.lo, one.hi, one.n) == pytest.approx((0.4, 0.3, 0.5, 4))
    # paired by item: 0.2 on a, 0 on b
    gap = compare_arms(grpo, pact, "solve_rate")
    assert gap is not None and (gap.mean, gap.n) == (pytest.approx(0.1), 2)


def test_a_repeated_seed_is_no_further_seed(tmp_path: Path) -> None:
    for seed, after in ((0, 0.4), (1, 0.6)):
        fake_run(tmp_path, after + 0.2, "algo=grpo", f"seed={seed}", "run_id=old" if seed else "run_id=older")
        later = fake_run(tmp_path, after, "algo=grpo", f"seed={seed}")
        later.write_json(later.status_path, later.status() | {"updated": "2999-01-01T00:00:00+0000"})
    report = build_report(load_records([tmp_path]), "")
    (table,) = [table for table in report.tables["Results"] if table.title == "Before and after training"]
    assert table.rows[0][1] == "2" and table.rows[0][3].startswith("0.500 [")
    told = [row for row in report.tables["Runs"][0].rows if "a later run has seed" in row[4]]
    assert sorted(Path(row[5]).name for row in told) == ["old", "older"]


def test_items_of_two_draws_are_not_paired(tmp_path: Path) -> None:
    one, other = fake_run(tmp_path, 0.4, "algo=grpo"), fake_run(tmp_path, 0.6, "algo=grpo", "bench.data_seed=1")
    left, right = (load_records([run.path])[0] for run in (one, other))
    assert compare_by_item(left, right, "solve_rate") is not None  # the clusters agree
    lines = [line | {"cluster": f"other {line['id']}"} for line in other.records(other.eval_dir / "after.jsonl")]
    other.replace_records(other.eval_dir / "after.jsonl", lines)
    assert compare_by_item(left, right, "solve_rate") is None


def test_equal_seeds_keep_the_interval_over_items(tmp_path: Path) -> None:
    """Three runs with the same mean do not prove that every run has this mean, on any items."""
    for seed in range(3):
        fake_run(tmp_path, 0.5, "algo=grpo", f"seed={seed}")
        fake_run(tmp_path, 0.5, "algo=pact", f"seed={seed}")
    _, (grpo, pact) = group_into_arms(load_records([tmp_path]))
    found = pool_metric(grpo, "after", "solve_rate")
    assert found is not None and (found.mean, found.lo, found.hi, found.n) == pytest.approx((0.5, 0.4, 0.6, 4))
    gap = compare_arms(grpo, pact, "solve_rate")
    assert gap is not None and (gap.mean, gap.n) == (0.0, 2) and not gap.known  # two items are too few
    assert "+0.000 [too few]" in render(build_report(load_records([tmp_path]), ""), "md")


def test_intervals_over_seeds_stay_in_range(tmp_path: Path) -> None:
    for seed, after in enumerate((0.9, 1.0, 1.0)):
        fake_run(tmp_path, after, "algo=grpo", f"seed={seed}")
    _, (grpo,) = group_into_arms(load_records([tmp_path]))
    found = pool_metric(grpo, "after", "solve_rate")
    assert found is not None and found.hi == 1.0 and found.lo == pytest.approx(0.823242, abs=1e-5)


def test_a_difference_is_trained_minus_base_in_any_order(tmp_path: Path) -> None:
    """The base is the model that the other was trained from, over several runs too, and for evaluations of their
    weights.
    """

    def weights(run: RunDirectory) -> str:
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}", encoding="utf-8")
        return f"model.path={run.path / 'model'}"

    base = fake_run(tmp_path / "a", 0.5, "algo=eval", "model=tiny")
    first = fake_run(tmp_path / "b", 0.6, "algo=sft")
    second = fake_run(
        tmp_path / "c", 0.7, "algo=grpo", "model=custom", weights(first), "model.name=s", "model.family=tiny"
    )
    last = fake_run(
        tmp_path / "d", 0.8, "algo=eval", "model=custom", weights(second), "model.name=aaa", "model.family=tiny"
    )
    order = {run.path: place for place, run in enumerate((base, first, last))}
    for records in itertools.permutations(load_records(order)):
        arms = [Arm((), str(record.path), [record]) for record in records]
        for one, other in difference_pairs(arms):
            assert order[one.runs[0].path] < order[other.runs[0].path]
    stranger = fake_run(tmp_path / "e", 0.1, "algo=pact")
    both = [Arm((), "", [record]) for record in load_records([first.path, stranger.path])]
    assert difference_pairs(both) == [tuple(both)] and difference_pairs(both[::-1]) == [tuple(both[::-1])]


def test_a_folder_is_the_same_base_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "adapter"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
    named = {"base_model_name_or_path": "./base"}  # PEFT writes the path that its user typed
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named), encoding="utf-8")
    own = ("algo=eval", "model=custom", "model.family=tiny")
    base = fake_run(tmp_path / "a", 0.5, *own, "model.path=./base", "model.name=base")
    trained = fake_run(tmp_path / "b", 0.7, *own, "model.path=adapter", "model.name=adapter")
    arms = [Arm((), record.path.name, [record]) for record in load_records([trained.path, base.path])]
    assert [(one.runs[0].path, other.runs[0].path) for one, other in difference_pairs(arms)] == [
        (base.path, trained.path)
    ]


def test_a_band_is_the_t_interval_at_each_step() -> None:
    curves = [(np.array([1.0, 2.0]), np.array([0.0, 4.0])), (np.array([1.0]), np.array([2.0]))]
    steps, mean, low, high = band(curves, shares=False)
    assert steps.tolist() == [1, 2] and mean.tolist() == [1, 4]
    half = 12.706205 * math.sqrt(2) / math.sqrt(2)  # t(0.975, 1) * sd / sqrt(2)
    assert (low[0], high[0]) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert math.isnan(low[1]) and math.isnan(high[1])


def test_a_band_of_shares_stays_in_0_to_1() -> None:
    curves = [(np.array([1.0]), np.array([0.2])), (np.array([1.0]), np.array([0.9]))]
    assert [edge.tolist() for edge in band(curves, shares=True)] == [[1], [0.55], [0], [1]]
    shares = {panel.name for panel in PANELS if panel.shares}
    assert {"solve_rate", "r_sys", "r_user", "violation_rate", "clip_ratio"} <= shares and not {"reward", "kl"} & shares


def test_stretches_lose_no_token(runs: Path) -> None:
    record = load_records([runs])[0].directory.records(next(runs.glob("*/*/rollouts.jsonl")))[0]
    parts = list(stretches(record))
    assert "".join(part.text for part in parts) == "".join(record["tokens"])
    assert [(part.component, part.trained, part.advantage) for part in parts] == [
        ("reasoning", True, 0.5),
        ("tool_call", True, 0.5),
        ("observation", False, 0.0),
        ("answer", True, -1.0),
    ]
    assert view(record).turn_advantages() == {0: 0.5, 1: -1.0}
    assert view(record).errors == 1 and view(record).reward == 1.25


def test_first_and_last_steps_are_shown_once_each(runs: Path) -> None:
    record = load_records([runs])[0].directory.records(next(runs.glob("*/*/rollouts.jsonl")))[0]
    views = [view(record | {"step": step, "task_id": task}) for step in (0, 4, 8) for task in "aab"]
    assert [(one.step, one.task) for one in first_and_last(views, 2)] == [(0, "a"), (0, "b"), (8, "a"), (8, "b")]
    assert [one.step for one in first_and_last(views[:3], 2)] == [0, 0]
    assert first_and_last([], 2) == []


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_escapes_model_text(runs: Path) -> None:
    page = render(build_report(load_records([runs]), "Two methods"), "html")
    parser = Tags()
    parser.feed(page)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in parser.found}
    assert not any(name.startswith("on") for _, attributes in parser.found for name in attributes)
    loaded = [a for _, attributes in parser.found for k, a in attributes.items() if k in ("src", "href", "xlink:href")]
    assert all(target is not None and target.startswith("#") for target in loaded)
    assert "&lt;script&gt;alert(1)" in page
    for text in (
        "0.500 [0.252, 0.748]",
        "+0.100",
        "grpo",
        "pact",
        "Before and after training, by hops",
        "turn 2: reward 1.000",
    ):
        assert text in page, text


def test_markdown_holds_the_same_tables(runs: Path) -> None:
    text = render(build_report(load_records([runs]), "Two methods"), "md")
    assert "| arm | seeds | solve_rate before | solve_rate after | " in text
    assert "| grpo | 3 | 0.300 [0.200, 0.400] | 0.500 [0.252, 0.748] |" in text
    assert "| pact - grpo | +0.100 [-0.148, +0.348] |" in text
    lines = text.splitlines()
    for head in (i for i, line in enumerate(lines) if line.startswith("|---")):
        assert lines[head - 1].count("|") == lines[head].count("|") == lines[head + 1].count("|")


@pytest.mark.parametrize("kind", ["md", "html"])
def test_a_run_in_training_has_no_table_of_results(tmp_path: Path, kind: str) -> None:
    assert start(composed(f"runs_dir={tmp_path}", "dry_run=true")) == 0
    (path,) = (place.parent for place in tmp_path.glob("*/*/status.json"))
    run = RunDirectory(path)
    run.set_status("running")
    run.append(run.metrics_path, {"step": 1, "reward": 0.5})
    page = render(build_report(load_records([path]), ""), kind)
    assert "Nothing to show: no run is complete" in page
    assert "After training" not in page and "running" in page


def test_benches_are_kept_apart_and_dry_runs_are_left_out(tmp_path: Path) -> None:
    fake_run(tmp_path, 0.4, "algo=grpo")
    fake_run(tmp_path, 0.6, "algo=pact")
    fake_run(tmp_path, 0.5, "algo=hipo")
    start(composed(f"runs_dir={tmp_path}", "dry_run=true", "algo=sft"))
    report = build_report(load_records([tmp_path]), "")
    results = [table for table in report.tables["Results"] if table.title.endswith("training")]
    assert [table.title for table in results] == [
        "minihif: Before and after training",
        "minihop: Before and after training",
    ]
    assert [[row[0] for row in table.rows] for table in results] == [["hipo"], ["grpo", "pact"]]
    between = [row[0] for table in report.tables["Differences"] for row in table.rows if " - " in row[0]]
    assert between == ["pact - grpo"]  # never between benches
    assert "dry_run" not in str(report.tables) and "sft" not in str(report.tables["Runs"])
    assert "minihif: " in render(report, "html") and "minihop: " in render(report, "md")
    (only,) = tmp_path.glob("minihop-tiny-sft/*")
    with pytest.raises(UserError, match="only dry runs"):
        load_records([only])


def test_hops_are_sorted_as_numbers_with_before_beside_after(tmp_path: Path) -> None:
    run = fake_run(tmp_path, 0.4, "algo=grpo")
    summary = json.loads(run.summary_path.read_text())
    summary["by"]["hops"] = {
        hops: {"before": {"solve_rate": interval(0.1, 0, 1)}, "after": {"solve_rate": interval(int(hops) / 20, 0, 1)}}
        for hops in ("10", "2", "1")
    }
    run.write_json(run.summary_path, summary)
    (table,) = (one for one in build_report(load_records([tmp_path]), "").tables["Results"] if "by hops" in one.title)
    assert table.head == ["arm", "hops", "solve_rate before", "solve_rate after"]
    assert [[row[1], row[2][:5], row[3][:5]] for row in table.rows] == [
        ["1", "0.100", "0.050"],
        ["2", "0.100", "0.100"],
        ["10", "0.100", "0.500"],
    ]


def test_gains_are_shown_of_arms_that_were_evaluated_before_training(tmp_path: Path) -> None:
    fake_run(tmp_path, 0.4, "algo=grpo")  # such a run has no differences

    def gains() -> list[list[list[str]]]:
        tables = build_report(load_records([tmp_path]), "").tables["Differences"]
        return [table.rows for table in tables if table.title == "After against before"]

    assert gains() == []
    run = fake_run(tmp_path, 0.6, "algo=pact")
    summary = json.loads(run.summary_path.read_text())
    summary["eval"]["difference"] = {"solve_rate": interval(0.3, 0.1, 0.5)}
    run.write_json(run.summary_path, summary)
    assert gains() == [[["pact", "+0.300 [+0.100, +0.500]"]]]


def test_the_diagnosis_compares_the_first_and_the_last_third_of_what_was_measured(runs: Path) -> None:
    for each in (record.directory for record in load_records([runs]) if record.seed != 0 or "grpo" in str(record.path)):
        shutil.rmtree(each.path)
    (record,) = load_records([runs])
    run = record.directory
    assert build_report([record], "x").tables["Diagnosis"] == []
    for step, norm in enumerate([1.0, 3.0, 0.0, 0.0, 5.0, 7.0]):
        run.append(run.metrics_path, {"step": step, "diagnose/norm_x": norm, "diagnose/shift_bad": -norm})
        run.append(run.metrics_path, {"step": step, "reward": 1.0})
    (table,) = build_report([record], "x").tables["Diagnosis"]
    assert [row[1] for row in table.rows] == ["first", "last"]
    at = {name: index for index, name in enumerate(table.head)}
    assert [row[at["|g_x|"]] for row in table.rows] == ["2", "6"]
    assert [row[at["d, bad"]] for row in table.rows] == ["-2", "-6"]
    assert table.rows[0][at["|g_h|"]] == "–"
    assert "What the terms pull at" in render(build_report([record], "x"), "html")


def test_two_swept_keys_give_a_grid(tmp_path: Path) -> None:
    for q in (0.2, 0.6):
        for coefficient in (0.1, 0.5):
            fake_run(tmp_path, q, f"algo.q={q}", f"algo.sft_coef={coefficient}")
    (grid,) = build_report(load_records([tmp_path]), "").tables["Grid"]
    assert grid.head == ["algo.q \\ algo.sft_coef", "0.1", "0.5"]
    assert [row[1][:5] for row in grid.rows] == ["0.200", "0.600"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])  # a phone, a desk
def test_a_browser_shows_the_page(runs: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(render(build_report(load_records([runs]), "Two methods"), "html"))
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --hide-scrollbars"
    command = [browser, *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
    image = mpl_image.imread(picture)[..., :3]
    assert image.shape[:2] == (2000, width)
    ink = (np.abs(image - image[0, 0]).max(-1) > 0.2).any(1)
    assert ink[:400].sum() > 30 and ink[-600:].sum() > 100  # a heading, and a full page of tables and curves
    dom = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120, text=True
    )
    assert "0.500 [0.252, 0.748]" in dom.stdout and dom.stdout.count("<svg") >= 2


def test_a_list_that_repeats_a_number_does_not_name_arms(tmp_path: Path) -> None:
    for tau in (0.7, 0.9):
        for eta in (0.1, 0.5):
            fake_run(tmp_path, tau, "algo=hipo", f"algo.tau={tau}", f"dual.learning_rate={eta}")
    keys, _ = group_into_arms(load_records([tmp_path]))
    assert keys == ["algo.tau", "dual.learning_rate"]  # algo.constraints holds tau too
    fake_run(tmp_path, 0.5, "algo=sft", "algo.components=[answer]")
    fake_run(tmp_path, 0.5, "algo=sft", "algo.components=[answer,reasoning]")
    assert "answer" in render(build_report(load_records([tmp_path]), ""), "html")  # lists have no hash


def test_the_report_command_writes_its_files(runs: Path, tmp_path: Path) -> None:
    made = agentrl(tmp_path, "report", str(runs), f"out={tmp_path / 'page.html'}")
    assert made.returncode == 0 and (tmp_path / "page.html").is_file() and (tmp_path / "page.md").is_file()
    for arguments, reason in (
        ((), "name run directories"),
        ((str(tmp_path / "absent"),), "does not exist"),
        ((str(runs), "out=page.pdf"), "must end in .html"),
        ((str(runs), "output=x.html"), "has no key output"),
    ):
        refused = agentrl(tmp_path, "report", *arguments)
        assert refused.returncode == 2 and reason in refused.stderr and refused.stderr.count("\n") == 1
