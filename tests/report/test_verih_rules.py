"""The script that makes a bench of VerIH's rules: requests stay on one side, and edited replies keep their rule."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches.hif.files import Row
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory
from tests.support.helpers import composed

RULES = {
    "title": "validate_title",
    "no commas": "validate_no_commas",
    "all uppercase": "validate_uppercase",
    "all lowercase": "validate_lowercase",
    "quotation": "validate_quotation",
    "postscript": "verify_postscript",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("verih_rules")


def row(rule: str, request: str, kind: str = "conflict") -> dict[str, Any]:
    marker = "PS:" if rule == "postscript" else None
    gt = {"func_name": RULES.get(rule, "verify_bullet_points"), "N": None, "postscript_marker": marker}
    return {"sys_prompt": rule, "user_prompt": request, "gt": json.dumps(gt), "type": f"{rule}:{kind}"}


def pairs(script: Any, rows: list[dict[str, Any]]) -> list[Any]:
    return [script.pair_of(Row(Path("train.json"), place, one), "train") for place, one in enumerate(rows)]


def test_requests_are_divided_within_each_rule_and_kind(script: Any) -> None:
    rows = [row(rule, f"{rule} {i}", kind) for rule in RULES for kind in ("conflict", "aligned") for i in range(4)]
    twice = [row("title", "the same request"), row("no commas", "the same request")]
    splits = script.divide([*rows, *twice, row("number bullets", "of another rule")])
    assert len(splits["train"]) + len(splits["test"]) == len(rows) + 2
    assert not {one["user_prompt"] for one in splits["train"]} & {one["user_prompt"] for one in splits["test"]}
    for rule in RULES:
        for kind in ("conflict", "aligned"):
            found = [sum(one["type"] == f"{rule}:{kind}" for one in splits[split]) for split in ("train", "test")]
            assert abs(found[0] - found[1]) <= 1 and sum(found) >= 4, (rule, kind)


def test_edited_replies_keep_their_rule(script: Any) -> None:
    rows = pairs(script, [row(rule, "Name two old towns of Peru.") for rule in RULES])
    reply = 'Cusco, "the navel", is old. Trujillo is, too. A third sentence.'
    traces = script.mend(rows, dict.fromkeys(range(len(rows)), reply))
    assert [trace.answer for trace in traces] == [
        '<<Name Two Old Towns>> Cusco, "the navel", is old. Trujillo is, too.',
        'Cusco "the navel" is old. Trujillo is too.',
        'CUSCO, "THE NAVEL", IS OLD. TRUJILLO IS, TOO.',
        'cusco, "the navel", is old. trujillo is, too.',
        '"Cusco, the navel, is old. Trujillo is, too."',
        'Cusco, "the navel", is old. Trujillo is, too.\n\nPS: I hope this helps.',
    ]
    assert [trace.task_id for trace in traces] == [f"verih-train-{place}" for place in range(6)]
    assert script.mend(rows, {0: reply}) == traces[:1]  # a prompt that was too long has no reply
    assert (
        script.mend(pairs(script, [row("all uppercase", "Add.")]), {0: "1 + 1"}) == []
    )  # no edit makes it keep the rule


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nope.json", None, "nope.json cannot be read"),
        ("README.md", "# Readme", "README.md cannot be read"),
        ("folder", None, "folder cannot be read"),
        ("other.json", '[{"prompt": "x"}]', "is not a list of rows with type and user_prompt"),
        ("again.json", '[{"type": "title:conflict", "user_prompt": "x"}]', "so it was divided before"),
    ],
)
def test_other_files_than_verihs_are_refused(
    script: Any, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        script.write_splits(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_only_a_finished_evaluation_of_the_same_rows_is_mended(script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps([row("all uppercase", "Name a town.")]))
    (folder / "test.json").write_text("[]")
    (folder / "traces.jsonl").write_text("kept")
    verih = ("algo=eval", "model=tiny_hif", "bench=verih", "bench.test_fraction=1", f"runs_dir={tmp_path}")

    def run(name: str, *overrides: str) -> RunDirectory:
        made = RunDirectory.create(composed(*overrides, f"name={name}", "run_id=a"))
        assert made is not None
        line = {"id": "verih-0", "messages": [{"role": "assistant", "content": "Cusco."}]}
        made.append(made.eval_dir / "after.jsonl", line)
        return made

    other = run("other", f"runs_dir={tmp_path}", "model=tiny", "bench=minihop")
    elsewhere = run("elsewhere", *verih, f"bench.path={folder / 'test.json'}")
    right = run("right", *verih, f"bench.path={folder / 'train.json'}")
    for path, said in (
        (tmp_path / "nowhere", "nowhere is not a run"),
        (other.path, "has replies to bench=minihop"),
        (elsewhere.path, "has replies to bench=verih bench.path=.*test.json"),
        (right.path, "let it finish"),
    ):
        with pytest.raises(UserError, match=said):
            script.make_traces(path, folder)
        assert (folder / "traces.jsonl").read_text() == "kept"
    right.set_status("completed")
    script.make_traces(right.path, folder)
    assert json.loads((folder / "traces.jsonl").read_text())["answer"] == "CUSCO."
