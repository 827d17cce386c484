"""MMLU-Redux, and what all side evaluations have in common: files, bad rows, system prompts, transcripts, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agentrl.benches import load_bench
from agentrl.benches.side.mmlu_redux import chosen_answer
from agentrl.commands.score import main as score_command
from agentrl.config.rules import validate
from agentrl.core.bench import TwoSided, remarks_of
from agentrl.core.errors import UserError
from agentrl.evaluation.results import summarise, summarise_groups
from tests.support.bench_files import (
    redux_row,
    write,
)
from tests.support.helpers import composed
from tests.support.side import bench_of, reply


def scores(bench: Any, *texts: str) -> list[dict[str, Any]]:
    """The metrics of one reply to each task, in the order of the tasks."""
    return [dict(bench.score(task, reply(text)).metrics) for task, text in zip(bench.tasks("test"), texts, strict=True)]


@pytest.fixture
def redux(tmp_path: Path) -> Path:
    write(tmp_path / "redux" / "anatomy" / "test.jsonl", [redux_row(n) for n in range(3)])
    write(tmp_path / "redux" / "virology" / "test.jsonl", [redux_row(n) for n in range(2)])
    write(tmp_path / "redux" / "virology" / "dataset_info.json", [{}])  # it lies beside the Arrow files of the hub
    return tmp_path / "redux"


def test_a_question_is_asked_in_zeroevals_words(redux: Path) -> None:
    bench = bench_of("mmlu_redux", redux)
    task = bench.tasks("test")[0]
    (message,) = task.prompt
    assert message["role"] == "user" and task.tools == [] and task.answer == "D"
    assert message["content"].startswith(
        "\n## Question: \n\nWhat is 0 + 3?\n\n## Choices:\n\n- (A) 0\n- (B) 1\n- (C) 2\n"
    )
    assert message["content"].endswith(
        "- (D) 3\n\n\n## Instruction \n\nPlease answer this question by first reasoning and then selecting the correct "
        "choice. \nPresent your reasoning and solution in the following json format. \nPlease show your choice in the "
        '`answer` field with only the choice letter, e.g.,`"answer": "C"`.\n\n```json\n{\n    "reasoning": "___",\n'
        '    "answer": "___"\n}\n```\n'
    )
    assert not isinstance(bench, TwoSided)
    assert [task.id for task in bench.tasks("test")][2:4] == ["mmlu_redux-anatomy-2", "mmlu_redux-virology-0"]


def test_pieces_of_a_table_are_numbered_through(tmp_path: Path) -> None:
    """`datasets` divides a large table into several files: no row is lost, and no id is given twice."""
    for piece in (0, 1):
        rows = [redux_row(n) for n in range(2)]
        write(tmp_path / "redux" / "anatomy" / f"data-0000{piece}-of-00002.jsonl", [*rows, {}])
    bench = bench_of("mmlu_redux", tmp_path / "redux")
    assert [task.id for task in bench.tasks("test")] == [f"mmlu_redux-anatomy-{n}" for n in (0, 1, 3, 4)]
    (remark,) = remarks_of(bench)
    assert "jsonl, row 2 (counted from 0), question: missing" in remark and "anatomy, row 5 (counted" in remark


def test_two_files_of_a_subject_are_refused(redux: Path) -> None:
    write(redux / "anatomy" / "dev.jsonl", [redux_row(0)])
    with pytest.raises(UserError, match=r"several files for anatomy \(anatomy/dev\.jsonl, anatomy/test\.jsonl\)"):
        bench_of("mmlu_redux", redux).tasks("test")


@pytest.mark.parametrize(("content", "words"), [(b"caf\xe9", "cannot be read as UTF-8"), (b" \n", "is empty")])
def test_a_system_prompt_without_text_is_refused(redux: Path, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "safety.txt").write_bytes(content)
    keys = ("algo=eval", "bench=mmlu_redux", f"bench.path={redux}", f"bench.system_prompt={tmp_path / 'safety.txt'}")
    with pytest.raises(UserError, match=f"bench.system_prompt=.*{words}"):
        validate(composed(*keys))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"reasoning": "x", "answer": "D"}', "D"),
        ('I think.\n```json\n{\n "reasoning": "a {b} c",\n "answer": "D"\n}\n```', "D"),
        ('{"answer": "A"} and then {"answer": "D"}', "A"),  # the first object counts
        ('{"reasoning": "cut off", "answer": "D"', "D"),  # no complete object
        ("{broken} answer: D", "D"),
        ('{"reasoning": "no answer in it"} "answer": C, or so', "C"),
        ('{"answer": ["D"]}', ["D"]),
        ("The answer is D.", None),
        ('{"answer": ""}', None),
        ("", None),
    ],
)
def test_an_answer_is_found_as_zeroeval_finds_it(text: str, answer: Any) -> None:
    assert chosen_answer(text) == answer


def test_the_letter_decides_and_silence_is_wrong(redux: Path) -> None:
    bench = bench_of("mmlu_redux", redux, "bench.subjects=[anatomy]")  # the letters are D, A, D
    right, wrong = {"accuracy": 1.0, "no_answer": 0.0}, {"accuracy": 0.0, "no_answer": 0.0}
    assert scores(bench, '{"answer": "D"}', '{"answer": "D"}', "no idea") == [
        right,
        wrong,
        {"accuracy": 0.0, "no_answer": 1.0},
    ]
    assert scores(bench, '{"answer": "(D) 3"}', '{"answer": "a"}', '{"answer": 3}') == [right, wrong, wrong]
    assert scores(bench, '<think>{"answer": "A"}</think>{"answer": "D"}', "<think>A", "D")[0] == right
    task = bench.tasks("test")[0]
    assert bench.score(task, reply('<think>{"answer": "D"', cut=True)).metrics == {"accuracy": None, "no_answer": None}


def test_an_error_of_mmlu_is_left_out_or_corrected(tmp_path: Path) -> None:
    rows = [
        redux_row(0),
        redux_row(2, error_type="bad_question_clarity"),
        redux_row(4, error_type="wrong_groundtruth", correct_answer="B"),
        redux_row(6, error_type="wrong_groundtruth", correct_answer="2"),
        redux_row(8, error_type="wrong_groundtruth", correct_answer="A or B"),
        redux_row(10, error_type="multiple_correct_answers", correct_answer="B"),
    ]
    file = write(tmp_path / "mmlu_anatomy.json", rows)
    dropped, corrected = (bench_of("mmlu_redux", file, f"bench.errors={kind}") for kind in ("drop", "correct"))
    assert [task.answer for task in dropped.tasks("test")] == ["D"] and dropped.remarks() == []
    tasks = corrected.tasks("test")
    assert [task.answer for task in tasks] == ["D", "B", "C"]
    assert [task.id for task in tasks] == ["mmlu_redux-anatomy-0", "mmlu_redux-anatomy-2", "mmlu_redux-anatomy-3"]
    assert corrected.score(tasks[1], reply("")).groups == {"suite": "anatomy", "error_type": "wrong_groundtruth"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (redux_row(0, choices=["a", "b", "c"]), "choices: expected a list of four texts"),
        (redux_row(0, answer=4), "answer: expected a number from 0 to 3, got 4"),
        (redux_row(0, answer=True), "answer: expected a number from 0 to 3, got bool"),
        (redux_row(0, question=" "), "question: empty"),
        ({"question": "?"}, "choices: missing"),
        ([1], "expected an object, got list"),
        ("text", "expected an object, got text"),
    ],
)
def test_a_row_with_a_mistake_costs_that_row_and_a_word(tmp_path: Path, row: Any, reason: str) -> None:
    file = write(tmp_path / "anatomy.jsonl", [redux_row(0), row, redux_row(2)])
    bench = bench_of("mmlu_redux", file)
    assert [task.id for task in bench.tasks("test")] == ["mmlu_redux-anatomy-0", "mmlu_redux-anatomy-2"]
    (remark,) = remarks_of(bench)
    assert remark.startswith("warning: bench=mmlu_redux: 1 row is left out for a mistake: ")
    assert "anatomy.jsonl, row 1 (counted from 0), " in remark and remark.endswith(reason)


def test_half_a_line_costs_that_line(tmp_path: Path) -> None:
    file = write(tmp_path / "anatomy.jsonl", [redux_row(0), redux_row(2)])
    file.write_text(file.read_text()[:-20] + "\n" + json.dumps(redux_row(4)) + "\n")
    bench = bench_of("mmlu_redux", file)
    assert bench.size("test") == 2 and "row 1 (counted from 0), not complete JSON" in bench.remarks()[0]


def test_data_without_a_good_row_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = write(tmp_path / "anatomy.jsonl", [redux_row(0, answer=9)])
    with pytest.raises(UserError, match=r"no item is left: .*row 0 .*answer: expected a number from 0 to 3, got 9"):
        bench_of("mmlu_redux", file).tasks("test")
    with pytest.raises(UserError, match="has no row of this evaluation"):
        bench_of("mmlu_redux", write(file, [redux_row(0, error_type="expert")])).tasks("test")
    with pytest.raises(UserError, match=r"bench\.subjects: the data has no law; choose from anatomy"):
        bench_of("mmlu_redux", file, "bench.subjects=[law]").tasks("test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no file of questions"):
        bench_of("mmlu_redux", tmp_path / "empty").tasks("test")


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "test-00000-of-00001.parquet"])
def test_the_tables_of_the_hub_are_read(tmp_path: Path, name: str) -> None:
    table = pyarrow.Table.from_pylist([redux_row(n) for n in range(3)])
    file = tmp_path / "redux" / "anatomy" / name
    file.parent.mkdir(parents=True)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    bench = bench_of("mmlu_redux", tmp_path / "redux")
    assert [task.answer for task in bench.tasks("test")] == ["D", "A", "D"]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"bench\.path: cannot read .*{name}"):
        bench_of("mmlu_redux", tmp_path / "redux").tasks("test")


def test_the_hub_is_asked_for_every_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(hub_id: str, name: str, split: str) -> Any:
        asked.append((hub_id, name, split))
        return datasets.Dataset.from_list([redux_row(0), redux_row(1)])

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda hub_id: ["anatomy", "virology"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    bench = load_bench(composed("algo=eval", "bench=mmlu_redux").bench)
    assert bench.size("test") == 5700 and asked == []  # an estimate downloads nothing
    assert [task.id for task in bench.tasks("test")][2:] == ["mmlu_redux-virology-0", "mmlu_redux-virology-1"]
    assert asked == [("edinburgh-dawg/mmlu-redux-2.0", name, "test") for name in ("anatomy", "virology")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"bench\.hub_id: cannot load .*anatomy \(division by zero\)"):
        load_bench(composed("algo=eval", "bench=mmlu_redux").bench).tasks("test")
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda hub_id: 1 / 0)
    keys = composed("algo=eval", "bench=mmlu_redux", "bench.hub_id=mine/redux").bench
    with pytest.raises(UserError, match=r"cannot load mine/redux \(division by zero\); give a local copy"):
        load_bench(keys).tasks("test")


def test_accuracy_is_over_questions_and_over_subjects(redux: Path) -> None:
    bench = bench_of("mmlu_redux", redux)
    items = []
    for task, right in zip(bench.tasks("test"), (1, 1, 0, 0, 0), strict=True):
        score = bench.score(task, reply(json.dumps({"answer": task.answer if right else "B"})))
        about = {"id": task.id, "sample": 0, "cluster": score.cluster, "groups": score.groups}
        items.append({**about, "metrics": score.metrics, "calls": 0, "tool_errors": 0, "truncated": False})
    summary = summarise([], items, bench.solve_metric)["after"]
    assert summary["accuracy"]["mean"] == pytest.approx(2 / 5)
    assert summary["macro"]["mean"] == pytest.approx((2 / 3 + 0) / 2)
    by = summarise_groups([], items, bench.solve_metric)["suite"]
    assert by["anatomy"]["after"]["accuracy"]["mean"] == pytest.approx(2 / 3)


# --- what all side evaluations have in common


def test_a_system_prompt_comes_from_a_file(redux: Path, tmp_path: Path) -> None:
    (tmp_path / "safe.txt").write_text("Be careful.\n")
    bench = bench_of("mmlu_redux", redux, f"bench.system_prompt={tmp_path / 'safe.txt'}")
    assert [message["role"] for message in bench.tasks("test")[0].prompt] == ["system", "user"]
    assert bench.tasks("test")[0].prompt[0]["content"] == "Be careful."
    with pytest.raises(UserError, match=r"bench\.system_prompt=.*gone\.txt: no such file"):
        validate(composed("algo=eval", "bench=mmlu_redux", f"bench.system_prompt={tmp_path / 'gone.txt'}"))


@pytest.mark.parametrize("algo", ["pact", "grpo", "sft"])
def test_there_is_nothing_to_train_on(redux: Path, algo: str) -> None:
    with pytest.raises(UserError, match="bench=mmlu_redux: has no rows to train on; evaluate a model on it with agent"):
        validate(composed(f"algo={algo}", "bench=mmlu_redux", f"bench.path={redux}"))
    with pytest.raises(UserError, match="has no train split"):
        bench_of("mmlu_redux", redux).tasks("train")


def test_recorded_replies_are_scored(redux: Path, tmp_path: Path, capsys: Any) -> None:
    write(redux / "anatomy" / "test.jsonl", [redux_row(0), {}, redux_row(2)])
    records = [
        {"suite": "anatomy", "row": 2, "response": '<think>{"answer": "A"}</think>{"answer": "D"}', "mine": 1},
        {"id": "mmlu_redux-virology-1", "response": "B?"},
    ]
    given, out = write(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    keys = ["bench=mmlu_redux", f"bench.path={redux}", f"transcripts={given}", f"out={out}"]
    assert score_command(keys) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {**records[0], "metrics": {"accuracy": 1.0, "no_answer": 0.0}}
    assert lines[1]["metrics"] == {"accuracy": 0.0, "no_answer": 1.0}
    assert "warning: bench=mmlu_redux: 1 row is left out for a mistake" in capsys.readouterr().out
    out.unlink()
    write(given, [{"row": 0, "response": "x"}, {"suite": "anatomy", "row": 1, "response": "x"}, {"id": "y"}])
    with pytest.raises(UserError, match=r"line 1: no suite.*line 2: row 1 of suite.*line 3: id .y.: mmlu_redux has no"):
        score_command(keys)
    assert not out.exists()
