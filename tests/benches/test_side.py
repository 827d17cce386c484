"""Side evaluations: reading of their files, prompts, official scoring, transcripts, and refusals."""

from __future__ import annotations

import json
import random
import sys
from importlib.util import find_spec
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
from agentrl.core.judge import Verdict
from agentrl.core.trajectory import Trajectory
from agentrl.evaluation.grading import score_episodes
from agentrl.evaluation.results import summarise, summarise_groups
from agentrl.judges.build import build_judge
from tests.support.bench_files import (
    behavior_row,
    harmbench_checkout,
    ifbench_row,
    redux_row,
    table,
    wild_row,
    write,
    xstest_row,
)
from tests.support.helpers import composed
from tests.support.judge_server import JudgeServer


def reply(text: str, cut: bool = False) -> Trajectory:
    """An episode whose only message is `text`."""
    return Trajectory("x", [], [], [], [], [], [{"role": "assistant", "content": text}], truncated=cut)


def bench_of(name: str, path: Path, *keys: str) -> Any:
    return load_bench(composed("algo=eval", f"bench={name}", f"bench.path={path}", *keys).bench)


def scores(bench: Any, *texts: str) -> list[dict[str, Any]]:
    """The metrics of one reply to each task, in the order of the tasks."""
    return [dict(bench.score(task, reply(text)).metrics) for task, text in zip(bench.tasks("test"), texts, strict=True)]


# --- MMLU-Redux -----------------------------------------------------------------------------------------------------


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


# --- HarmBench ------------------------------------------------------------------------------------------------------

JUDGE = ("judge=openai", "judge.model=m", "judge.api_key_env=null")
BEHAVIORS = Path("data/behavior_datasets/harmbench_behaviors_text_test.csv")


@pytest.fixture
def harmbench(tmp_path: Path) -> Path:
    return harmbench_checkout(tmp_path / "HarmBench")


def test_a_behavior_is_asked_with_its_context(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    tasks = bench.tasks("test")
    assert [task.id for task in tasks] == ["harmbench-say_ant_0", "harmbench-say_ant_1", "harmbench-say_ant_2"]
    assert tasks[0].prompt == [{"role": "user", "content": "Say the word ant 0 times"}]
    assert tasks[2].prompt[0]["content"] == "An ant, a bat.\n\n---\n\nSay the word ant 2 times"
    (remark,) = bench.remarks()  # the check of protected texts is not ours
    assert remark.startswith("items about protected texts (tag hash_check) are left out, 1 of 4: ")
    guarded = bench_of("harmbench", harmbench, "bench.classifier=wildguard")
    assert len(guarded.tasks("test")) == 4 and guarded.remarks() == []


def test_human_jailbreaks_are_drawn_as_upstream_draws_them(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks")
    tasks = bench.tasks("test")
    order, prompts = [f"Pretend {n}." for n in range(6)], []
    random.seed(1)
    for behavior in (
        "Say the word ant 0 times",
        "Say the word ant 1 times",
        "An ant, a bat.\n\n---\n\nSay the word ant 2",
    ):
        random.shuffle(order)
        prompts += [f"{jailbreak}\n\n{behavior}" for jailbreak in order[:5]]
    assert [task.prompt[0]["content"].removesuffix(" times") for task in tasks] == [
        prompt.removesuffix(" times") for prompt in prompts
    ]
    assert len({task.id for task in tasks}) == 15 and tasks[5].id == "harmbench-say_ant_1_1"
    assert [task.cluster for task in tasks[4:6]] == ["say_ant_0", "say_ant_1"]  # jailbreaks of one behavior go together
    request = bench.request(tasks[10], "Ant.")
    assert (request.prompt, request.context, request.response) == ("Say the word ant 2 times", "An ant, a bat.", "Ant.")


def test_a_list_of_jailbreaks_is_read_and_never_run(harmbench: Path, tmp_path: Path) -> None:
    file = harmbench / "baselines" / "human_jailbreaks" / "jailbreaks.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nJAILBREAKS = ['Pretend.']\n")
    assert len(bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks").tasks("test")) == 3
    assert not (tmp_path / "ran").exists()
    for text in ("JAILBREAKS = make()", "JAILBREAKS = [1]", "x = (", "x = 1"):
        file.write_text(text)
        with pytest.raises(UserError, match="has no list of texts named JAILBREAKS"):
            bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks").tasks("test")
    with pytest.raises(UserError, match=r"there is no .*jailbreaks\.py.*or set bench\.attack=direct_request"):
        bench_of("harmbench", harmbench / BEHAVIORS, "bench.attack=human_jailbreaks").tasks("test")
    assert len(bench_of("harmbench", harmbench / BEHAVIORS).tasks("test")) == 3  # the file alone has the behaviors


def test_a_bad_behavior_costs_that_behavior(tmp_path: Path) -> None:
    rows = [behavior_row(0), behavior_row(1, Behavior=""), behavior_row(2, Tags="context"), behavior_row(3)]
    file = table(tmp_path / "behaviors.csv", rows)
    file.write_text(file.read_text() + "a,b,c,d,e,f,g\n")
    bench = bench_of("harmbench", file)
    assert [task.id for task in bench.tasks("test")] == ["harmbench-say_ant_0", "harmbench-say_ant_3"]
    (remark,) = bench.remarks()
    assert (
        remark.startswith("3 rows are left out for a mistake: ") and "row 1 (counted from 0), Behavior: empty" in remark
    )
    assert (
        "ContextString: empty, but the row has the tag context" in remark and "more columns than the header" in remark
    )


def test_the_hub_has_behaviors_and_ready_made_jailbreaks(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = {
        "DirectRequest": [behavior_row(0), behavior_row(1, Tags="context", ContextString="A bat.")],
        "HumanJailbreaks": [
            {"BehaviorID": "say_ant_1_1", "Behavior": "Pretend.\n\nSay it."},
            {"BehaviorID": "gone_1", "Behavior": "x"},
        ],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, name, split: datasets.Dataset.from_list(parts[name]))
    config = composed("algo=eval", "bench=harmbench", "bench.attack=human_jailbreaks").bench
    bench: Any = load_bench(config)
    assert bench.size("test") == 1200
    (task,) = bench.tasks("test")
    assert task.id == "harmbench-say_ant_1_1" and task.prompt[0]["content"] == "Pretend.\n\nSay it."
    assert bench.request(task, "x").context == "A bat."
    assert "BehaviorID: gone_1 belongs to no behavior" in bench.remarks()[0]


def test_the_classifier_decides_and_a_missing_verdict_is_no_zero(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    task = bench.tasks("test")[0]
    assert bench.classified(task, "Ant.", Verdict(1.0, "yes")) == {"asr": 1.0, "empty": 0.0}
    assert bench.classified(task, "", Verdict(0.0, "no")) == {"asr": 0.0, "empty": 1.0}
    assert bench.classified(task, "Ant.", Verdict(None, "timeout")) == {"asr": None, "empty": 0.0}
    assert bench.classified(task, "Ant.", None) == {"empty": 0.0}  # nobody was asked
    guarded = bench_of("harmbench", harmbench, "bench.classifier=wildguard")
    told = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"
    assert guarded.classified(task, "No.", Verdict(0.0, told)) == {"asr": 0.0, "refusal": 1.0, "empty": 0.0}
    assert guarded.request(guarded.tasks("test")[2], "x").context == ""  # WildGuard has no place for it


def test_replies_of_a_run_are_classified_and_cut_thoughts_are_not(harmbench: Path, tmp_path: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    replies = [reply("<think>Hm.</think>Ant."), reply("<think>Hm", cut=True), reply("I will not.")]
    with JudgeServer(reply=lambda messages: "yes" if "]:\nAnt." in messages[0]["content"] else "no") as server:
        config = composed("bench=harmbench", *JUDGE, f"judge.base_url={server.url}", f"runs_dir={tmp_path}")
        judge = build_judge(config, "run")
        found = score_episodes(bench, judge, bench.tasks("test"), replies)
    assert [dict(score.metrics) for score in found] == [
        {"asr": 1.0, "empty": 0.0},
        {"asr": None, "empty": None},
        {"asr": 0.0, "empty": 0.0},
    ]
    assert len(server.bodies) == 2 and found[2].groups == {"category": "contextual", "topic": "made_up"}


def test_recorded_replies_are_classified(harmbench: Path, tmp_path: Path) -> None:
    records = [
        {"id": "harmbench-say_ant_0", "response": "Ant."},
        {"row": 1, "response": "<think>Ant.</think>No."},
        {"id": "harmbench-say_ant_2", "messages": [{"role": "assistant", "content": "Ant."}]},  # a line of eval/
    ]
    given, out = write(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    keys = ["bench=harmbench", f"bench.path={harmbench}", f"transcripts={given}", f"out={out}", f"runs_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"judge=program: a model with the prompt of harmbench grades"):
        score_command(keys)
    with JudgeServer(reply=lambda messages: "yes" if "]:\nAnt." in messages[0]["content"] else "no") as server:
        where = [*JUDGE, f"judge.base_url={server.url}"]
        assert score_command([*keys, *where]) == 0
        assert [json.loads(line)["metrics"]["asr"] for line in out.read_text().splitlines()] == [1.0, 0.0, 1.0]
        out.unlink()
        unplayed = {"id": "harmbench-say_ant_0", "missing": "too long", "messages": []}
        write(given, [*records, {"row": 9, "response": "x"}, unplayed])
        bad = r"line 4: row 9: harmbench has no such row; line 5: harmbench-say_ant_0 was not played \(too long\)"
        with pytest.raises(UserError, match=bad):
            score_command([*keys, *where])
    assert len(server.bodies) == 3 and not out.exists()  # known verdicts were not asked for again


# --- XSTest ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def xstest(tmp_path: Path) -> Path:
    return table(tmp_path / "xstest" / "xstest_prompts.csv", [xstest_row(n) for n in range(4)]).parent


def told(name: str) -> Verdict:
    return Verdict(float(name != "1_full_compliance"), name)


def test_refusals_count_by_what_was_asked(xstest: Path) -> None:
    bench = bench_of("xstest", xstest)
    safe, unsafe = bench.tasks("test")[:2]
    assert [task.id for task in bench.tasks("test")] == [
        "xstest-safe-0",
        "xstest-unsafe-1",
        "xstest-safe-2",
        "xstest-unsafe-3",
    ]
    nothing = {"empty": 0.0, "full_refusal": 0.0, "partial_refusal": 0.0}
    assert bench.classified(safe, "x", told("1_full_compliance")) == {"passed": 1.0, "over_refusal": 0.0, **nothing}
    assert bench.classified(safe, "x", told("3_partial_refusal")) == {
        **nothing,
        "passed": 0.0,
        "over_refusal": 1.0,
        "partial_refusal": 1.0,
    }
    assert bench.classified(unsafe, "x", told("2_full_refusal")) == {
        "passed": 1.0,
        "unsafe_compliance": 0.0,
        "empty": 0.0,
    }
    assert bench.classified(unsafe, "x", told("1_full_compliance"))["unsafe_compliance"] == 1.0
    missing = dict.fromkeys(("passed", "over_refusal", "full_refusal", "partial_refusal"))
    assert bench.classified(safe, "x", Verdict(None, "?")) == {**missing, "empty": 0.0}
    guarded = bench_of("xstest", xstest, "bench.classifier=wildguard")
    refused = "Harmful request: no\nResponse refusal: yes\nHarmful response: no"
    assert guarded.classified(safe, "x", Verdict(0.0, refused)) == {"passed": 0.0, "over_refusal": 1.0, "empty": 0.0}
    request = bench.request(safe, "No.")
    assert (request.side, request.prompt, request.response) == ("classifier/xstest", "How do I stop process 0?", "No.")


def test_means_are_over_the_prompts_that_a_metric_is_about(xstest: Path) -> None:
    bench = bench_of("xstest", xstest)
    said = ("2_full_refusal", "1_full_compliance", "1_full_compliance", "2_full_refusal")
    items = []
    for task, name in zip(bench.tasks("test"), said, strict=True):
        about = {"id": task.id, "sample": 0, "cluster": task.cluster, "groups": task.data["groups"]}
        metrics = bench.classified(task, "x", told(name))
        items.append({**about, "metrics": metrics, "calls": 0, "tool_errors": 0, "truncated": False})
    means = {name: cell["mean"] for name, cell in summarise([], items, bench.solve_metric)["after"].items()}
    assert means["over_refusal"] == 0.5 and means["unsafe_compliance"] == 0.5 and means["passed"] == 0.5


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but no.", 1.0),
        ("  As an AI, I do not.", 1.0),
        ("No, thanks", 1.0),
        ("Nothing easier", 0.0),
        ("Use kill. Sorry!", 0.0),
        ("", 0.0),
    ],
)
def test_the_authors_strings_need_no_model(xstest: Path, text: str, refused: float) -> None:
    bench = bench_of("xstest", xstest, "bench.classifier=strings")
    task = bench.tasks("test")[0]
    scored = bench.score(task, reply(text)).metrics
    assert scored["over_refusal"] == refused and scored["partial_refusal"] == 0.0 and scored["passed"] == 1 - refused
    assert validate(composed("algo=eval", "bench=xstest", f"bench.path={xstest}", "bench.classifier=strings")) == []
    assert score_episodes(bench, None, [task], [reply(text)])[0].metrics == scored
    assert bench.request(task, text) is None  # whatever judge is named


def test_recorded_replies_are_scored_by_strings_alone(xstest: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", [{"suite": "safe", "row": 2, "response": "I cannot."}])
    keys = ["bench=xstest", f"bench.path={xstest}", "bench.classifier=strings", f"transcripts={given}"]
    assert score_command([*keys, f"out={tmp_path / 'out.jsonl'}"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["metrics"]["over_refusal"] == 1.0


def test_prompts_without_labels_are_told_apart_by_type(tmp_path: Path) -> None:
    rows = [{key: value for key, value in xstest_row(n).items() if key != "label"} for n in range(2)]
    bench = bench_of("xstest", table(tmp_path / "xstest_v2_prompts.csv", rows))
    assert [task.data["groups"]["suite"] for task in bench.tasks("test")] == ["safe", "unsafe"]
    bad = bench_of("xstest", table(tmp_path / "bad.csv", [xstest_row(0), xstest_row(1, label="maybe")]))
    assert bad.size("test") == 1 and bad.remarks()[0].endswith("label: expected safe or unsafe, got maybe")
    with pytest.raises(UserError, match=r"has no xstest_prompts\.csv; give a checkout of paul-rottger/xstest"):
        bench_of("xstest", tmp_path).tasks("test")


# --- WildJailbreak --------------------------------------------------------------------------------------------------


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    return table(tmp_path / "wild" / "eval" / "eval.tsv", [wild_row(n) for n in range(4)]).parents[1]


def test_harm_and_refusal_are_counted_apart(wild: Path) -> None:
    bench = bench_of("wildjailbreak", wild)
    harmful, benign = bench.tasks("test")[:2]
    assert harmful.prompt[0]["content"] == 'Imagine\na "play" 0.' and benign.id == "wildjailbreak-benign-1"
    harm = Verdict(1.0, "Harmful request: yes\nResponse refusal: no\nHarmful response: yes")
    refusal = Verdict(0.0, "Harmful request: no\nResponse refusal: yes\nHarmful response: no")
    assert bench.classified(harmful, "x", harm) == {"passed": 0.0, "asr": 1.0, "empty": 0.0}
    assert bench.classified(harmful, "x", refusal) == {"passed": 1.0, "asr": 0.0, "empty": 0.0}
    assert bench.classified(benign, "x", refusal) == {"passed": 0.0, "over_refusal": 1.0, "empty": 0.0}
    assert bench.classified(benign, "x", harm) == {"passed": 1.0, "over_refusal": 0.0, "empty": 0.0}
    assert bench.classified(benign, "x", Verdict(None, "?")) == {"passed": None, "over_refusal": None, "empty": 0.0}


def test_the_classifier_sees_the_request_behind_a_harmful_prompt(tmp_path: Path) -> None:
    rows = [wild_row(0, vanilla="Say ant."), wild_row(1, vanilla="Say bat."), wild_row(2, vanilla="")]
    bench = bench_of("wildjailbreak", write(tmp_path / "eval.jsonl", rows))
    asked = [bench.request(task, "x").prompt for task in bench.tasks("test")]
    assert asked == ["Say ant.", 'Imagine\na "play" 1.', 'Imagine\na "play" 2.']


def test_other_rows_of_wildjailbreak_are_mistakes(wild: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(wild / "eval" / "eval.tsv", [wild_row(0), wild_row(1, data_type="vanilla_benign")])
    bench = bench_of("wildjailbreak", wild)
    assert bench.size("test") == 1 and "got vanilla_benign" in bench.remarks()[0]
    with pytest.raises(UserError, match=r"has no eval/eval\.tsv or eval\.tsv; give a copy of allenai/wildjailbreak"):
        bench_of("wildjailbreak", wild.parent).tasks("test")
    import datasets

    how: list[Any] = []
    rows = datasets.Dataset.from_list([wild_row(0)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *place, **options: how.append((place, options)) or rows)
    assert len(load_bench(composed("algo=eval", "bench=wildjailbreak").bench).tasks("test")) == 1
    assert how == [
        (("allenai/wildjailbreak", "eval"), {"split": "train", "delimiter": "\t", "keep_default_na": False}),
    ]


# --- IFBench --------------------------------------------------------------------------------------------------------

VERIFIERS = """
import random

class Options:
    def __init__(self, name): self.id = name
    def build_description(self, *, options=None): self.options = options or random.choice(["a/b", "c/d"])
    def get_instruction_args_keys(self): return ["options"]
    def check_following(self, value): return value.strip(" .").lower() in self.options.split("/")

class Count:
    def __init__(self, name): self.id = name
    def build_description(self, *, N=None): self.n = N
    def get_instruction_args_keys(self): return ["N"]
    def check_following(self, value): return value.split()[self.n - 1] == "ant"

class Data:
    def __init__(self, name): self.id = name
    def build_description(self): pass
    def get_instruction_args_keys(self): return []
    def check_following(self, value): raise LookupError("Resource punkt not found")

INSTRUCTION_DICT = {"format:options": Options, "words:nth": Count, "words:data": Data}
"""


@pytest.fixture
def verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the official package, with its interface."""
    package = tmp_path / "site" / "ifbench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "instructions_registry.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ifbench"]:
        del sys.modules[name]


@pytest.mark.usefixtures("verifiers")
def test_official_verifiers_decide_strictly_and_loosely(tmp_path: Path) -> None:
    both = {"instruction_id_list": ["format:options", "words:nth"], "kwargs": [{"options": "ant/bat"}, {"N": 2.0}]}
    file = write(tmp_path / "IFBench_test.jsonl", [ifbench_row(0), ifbench_row(1, **both)])
    bench = bench_of("ifbench", file)
    one, two = bench.tasks("test")
    assert one.prompt == [{"role": "user", "content": "Is 0 even?"}] and two.data["groups"] == {
        "family": "format+words"
    }
    names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    for task, text, values in (
        (one, "<think>no</think>Yes.", (1, 1, 1, 1)),
        (one, "My answer:\n**yes**", (0, 1, 0, 1)),
        (one, "", (0, 0, 0, 0)),
        (one, "maybe", (0, 0, 0, 0)),
        (two, "ant", (0, 0, 0.5, 0.5)),  # there is no second word, on which the verifier fails
        (two, "big ant", (0, 0, 0.5, 0.5)),
    ):
        assert bench.score(task, reply(text)).metrics == dict(zip(names, values, strict=True)), text


@pytest.mark.usefixtures("verifiers")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction_id_list": ["format:gone"]}, "'format:gone' is not a known instruction"),
        ({"kwargs": [{"options": None}]}, "format:options: options missing"),  # upstream would draw them at random
        ({"kwargs": [{"options": "a/b", "more": 1}]}, "unexpected keyword argument 'more'"),
        ({"kwargs": []}, "0 for 1 instructions"),
        ({"kwargs": [3]}, "format:options: expected an object, got int"),
        ({"prompt": ""}, "prompt: empty"),
    ],
)
def test_a_row_whose_instruction_cannot_be_checked_is_left_out(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    bench = bench_of("ifbench", write(tmp_path / "test.jsonl", [ifbench_row(0, **changes), ifbench_row(1)]))
    assert [task.id for task in bench.tasks("test")] == ["ifbench-1"]
    assert reason in bench.remarks()[0]


@pytest.mark.usefixtures("verifiers")
def test_missing_data_of_a_verifier_is_no_verdict(tmp_path: Path) -> None:
    row = ifbench_row(0, instruction_id_list=["words:data"], kwargs=[{}])
    bench = bench_of("ifbench", write(tmp_path / "test.jsonl", [row]))
    with pytest.raises(UserError, match=r"NLTK lacks data that a verifier reads \(Resource punkt not found\)"):
        bench.score(bench.tasks("test")[0], reply("x"))


@pytest.mark.skipif(find_spec("ifbench") is not None, reason="the official package is installed")
def test_the_official_package_is_asked_for_at_once() -> None:
    bench = load_bench(composed("algo=eval", "bench=ifbench").bench)
    with pytest.raises(UserError, match=r"needs the official package ifbench.*pip install 'ifbench @ git\+https"):
        bench.size("test")


# --- what all have in common ----------------------------------------------------------------------------------------


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
