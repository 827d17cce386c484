"""FTRL: loading and its complaints, splits, prompts and traces; scores and execution against the official episodes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agentrl.benches import load_bench
from agentrl.benches.execution import ERROR_PREFIX
from agentrl.benches.ftrl import ANSWER_TAG, FtrlBench
from agentrl.benches.ftrl_rows import load_rows
from agentrl.config.benches import Ftrl
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory

HEAD = (
    "Please call given tools to answer the question. Please note that all your information must be obtained by calling "
    "tools and not by answering the question directly.\nIf the call fails, you need to try to correct it and continue "
    "until you arrive at an answer."
)
CAPITAL = "def capital(country):\n    return {'Norland': 'Brondal', 'Sudland': 'Marn'}.get(country, {'error': country})"
PEOPLE = """
def people(city, unit='one'):
    if city == 'Brondal':
        return {'count': '1,200', 'unit': unit}
    return 'é'
"""


def function(name: str, *parameters: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {p: {"type": "string"} for p in parameters}, "required": [*parameters]}
    return {"type": "function", "function": {"name": name, "description": f"Finds {name}.", "parameters": schema}}


def row(number: int = 0, split: str = "test", **changes: Any) -> dict[str, Any]:
    """A question of two hops; the string columns are encoded as FTRL encodes them."""
    question = f"How many people live in the capital of Norland, asked for time {number}?"
    content: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{HEAD}\nQuestion: {question}"}],
        "tools": [function("capital", "country"), function("people", "city")],
        "codes": {"capital": CAPITAL, "people": PEOPLE},
        "unsolved_set": {"capital": ["Brondal"], "people": ["1,200"]},
        "solve_rate": 0.0,
        "data_source": f"self/{('single', 'multi')[number % 2]}_hop",
        "split": split,
        "answer": "1,200",
    } | changes
    encoded = ("tools", "codes", "unsolved_set", "ground_truth")
    return {k: json.dumps(v) if k in encoded and not isinstance(v, str) else v for k, v in content.items()}


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return file


def bench(path: Path, **changes: Any) -> FtrlBench:
    values: dict[str, Any] = {
        "rules": "official",
        "answer_tag": "train",
        "train_on_test": False,
        "test_fraction": 0.25,
        "data_seed": 0,
    }
    loaded = load_bench(Ftrl(name="ftrl", path=str(path), **values | changes))
    assert isinstance(loaded, FtrlBench)
    return loaded


def one_task(directory: Path, **changes: Any) -> tuple[FtrlBench, Task]:
    loaded = bench(write(directory / "test.jsonl", [row(**changes)]))
    return loaded, loaded.tasks("test")[0]


def trajectory(calls: list[ToolCall], messages: list[dict[str, Any]] | None = None) -> Trajectory:
    return Trajectory("t", [], [], [], [], [], messages or [], calls)


# -- tasks and splits ------------------------------------------------------------------------------------------------


def test_a_task(tmp_path: Path) -> None:
    _, task = one_task(tmp_path)
    assert (task.id, task.answer, task.cluster) == ("ftrl-test-0", "1,200", "self/single_hop")
    assert [tool["function"]["name"] for tool in task.tools] == ["capital", "people"]
    assert task.prompt == row()["messages"]


def test_the_answer_tag_follows_its_key_and_not_the_file(tmp_path: Path) -> None:
    plain = row()["messages"][0]["content"]
    tagged = plain.replace("an answer.\n", "an answer." + ANSWER_TAG + "\n")
    assert ANSWER_TAG == (
        " Only output the final answer (in words, numbers or phrase) inside the <answer></answer> tag, without any "
        "explanations or extra information."
    )
    train = row(1, "train")["messages"][0]["content"].replace("\nQuestion", ANSWER_TAG + "\nQuestion")
    write(tmp_path / "train.jsonl", [row(1, "train", messages=[{"role": "user", "content": train}])])
    write(tmp_path / "test.jsonl", [row()])
    found = {}
    for key in ("train", "always", "never"):
        loaded = bench(tmp_path, answer_tag=key)
        texts = [loaded.tasks(split)[0].prompt[0]["content"] for split in ("train", "test")]
        assert [ANSWER_TAG in text for text in texts] == [key != "never", key == "always"]
        found[key] = texts
    assert found["always"] == [train, tagged] and found["never"][1] == plain
    assert found["never"][0] == train.replace(ANSWER_TAG, "")


def test_a_directory_has_a_file_for_each_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of train\.jsonl, train\.parquet, test\.jsonl, test\.parquet"):
        bench(tmp_path).tasks("train")
    write(tmp_path / "train.jsonl", [row(n, "train") for n in range(3)])
    write(tmp_path / "test.jsonl", [row(n) for n in range(5, 7)])
    loaded = bench(tmp_path)
    assert [t.id for t in loaded.tasks("train")] == ["ftrl-train-0", "ftrl-train-1", "ftrl-train-2"]
    assert [t.id for t in loaded.tasks("test")] == ["ftrl-test-0", "ftrl-test-1"]
    limited = loaded.tasks("train", limit=2, seed=1)
    assert len(limited) == 2 and limited == loaded.tasks("train", limit=2, seed=1)
    assert loaded.size("train") == 3 and bench(tmp_path).size("test") == 2
    (tmp_path / "train.parquet").touch()
    for asked in (bench(tmp_path).tasks, bench(tmp_path).size):
        with pytest.raises(UserError, match=r"has both train\.jsonl and train\.parquet; remove one"):
            asked("train")


def test_a_directory_with_one_of_the_files_is_that_file(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [row(n) for n in range(5)])
    assert bench(tmp_path).tasks("test") == bench(file).tasks("test") and len(bench(tmp_path).tasks("test")) == 5
    with pytest.raises(UserError, match="has only test rows"):
        bench(tmp_path).tasks("train")


def test_rows_of_one_file_go_by_their_split(tmp_path: Path) -> None:
    loaded = bench(write(tmp_path / "all.jsonl", [row(0, "train"), row(1), row(2, "train")]))
    assert [len(loaded.tasks(split)) for split in ("train", "test")] == [2, 1]


def test_training_rows_alone_are_divided(tmp_path: Path) -> None:
    rows = [row(n % 12, "train") for n in range(24)]  # every question twice
    loaded = bench(write(tmp_path / "train.jsonl", rows))
    test = loaded.tasks("test")
    assert len(loaded.tasks("train")) == 16 and len(test) == 8  # 2 of 6 questions (a quarter, to even) per source
    assert {t.cluster for t in test} == {"self/single_hop", "self/multi_hop"}
    assert [t.id for t in test] == [t.id for t in bench(tmp_path / "train.jsonl").tasks("test")]
    assert [t.id for t in test] != [t.id for t in bench(tmp_path / "train.jsonl", data_seed=1).tasks("test")]


def test_training_on_test_rows_takes_a_word(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [row(n) for n in range(8)])
    assert len(bench(file).tasks("test")) == 8
    with pytest.raises(UserError, match=r"test\.jsonl has only test rows; .*bench\.train_on_test=true"):
        bench(file).tasks("train")
    loaded = bench(file, train_on_test=True)
    train, test = ({task.id for task in loaded.tasks(split)} for split in ("train", "test"))
    assert train and test and not train & test and len(train | test) == 8
    for stray in (row(50), row(0, "train")):  # called a test row, or with the question of one
        write(tmp_path / "train.jsonl", [row(20, "train"), stray])
        with pytest.raises(UserError, match="training row ftrl-train-1 is a test row"):
            bench(tmp_path).tasks("train")
        assert len(bench(tmp_path, train_on_test=True).tasks("train")) == 2


def nested_row(name: str, parameters: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns are no strings; every tool has other parameters."""
    tool = function(name)
    tool["function"]["parameters"] = {"type": "object", "properties": parameters, "required": list(arguments)}
    changes = {
        "tools": [tool],
        "codes": {name: f"def {name}(**given):\n    return 'K84'\n"},
        "unsolved_set": {name: ["K84"]},
        "ground_truth": [{"name": name, "parameters": arguments}],
        "answer": "K84",
    }
    return row(split="train") | changes


def test_nested_columns_hold_what_their_row_had(tmp_path: Path) -> None:
    rows = [
        nested_row("code_of", {"room": {"type": "integer", "enum": [12, None]}}, {"room": 12}),
        nested_row(
            "tax_of", {"bill": {"type": "object", "properties": {"no": {"type": "string"}}}}, {"bill": {"no": "3"}}
        ),
        nested_row("seats", {"list": {"type": "array", "items": {"type": "string"}}}, {"list": ["a"]}),
        nested_row("now", {}, {}),
        nested_row("capital", {"country": {"type": "string"}}, {"country": "x"}),
    ]
    write(tmp_path / "train.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    loaded = load_rows(tmp_path / "train.parquet")
    assert loaded == load_rows(tmp_path / "train.jsonl")
    assert loaded[3].ground_truth == (("now", {}),) and list(loaded[0].sources) == ["code_of"]
    (tmp_path / "train.jsonl").unlink()
    write(tmp_path / "test.jsonl", [row(99)])
    traced = bench(tmp_path)
    task = traced.tasks("train")[1]
    assert "None" not in str(task.tools) and list(task.golds) == ["tax_of"]
    trace = traced.expert_trace(task)
    assert trace is not None and trace.source == "path"
    assert trace.calls == [{"name": "tax_of", "arguments": {"bill": {"no": "3"}}}]


def test_a_parquet_map_is_an_object(tmp_path: Path) -> None:
    rows = [nested_row("code_of", {"room": {"type": "integer"}}, {"room": 12})]
    text = pyarrow.string()
    columns = {name: pyarrow.array([value[name] for value in rows]) for name in rows[0]}
    columns["codes"] = pyarrow.array([list(rows[0]["codes"].items())], pyarrow.map_(text, text))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    assert load_rows(tmp_path / "train.parquet")[0].sources == rows[0]["codes"]


@pytest.mark.parametrize("name", ["nested", "tools_nested"])
def test_the_shared_nested_files(shared: Path, name: str) -> None:
    loaded = load_rows(shared / f"cases/{name}.parquet")
    for number, each in enumerate(loaded):
        ((tool, arguments),) = each.ground_truth
        (schema,) = (one["function"]["parameters"] for one in each.tools)
        assert list(schema["properties"]) == schema["required"] == list(arguments), number
        assert list(each.sources) == list(each.golds) == [tool]


def test_parquet_rows_are_the_same_rows(tmp_path: Path) -> None:
    calls = [{"name": "capital", "parameters": {"country": "Norland"}}]
    rows = [row(n, "train", ground_truth=calls) for n in range(3)]
    write(tmp_path / "train.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert load_rows(tmp_path / "train.parquet") == load_rows(tmp_path / "train.jsonl")
    rows[1]["answer"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert "train.parquet, row 1, answer: expected a string" in complaint(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    assert "not a complete parquet file" in complaint(tmp_path / "train.parquet")


# -- bad files -------------------------------------------------------------------------------------------------------


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        bench(path).tasks("test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    assert "x.jsonl (No such file" in complaint(file)
    file.write_text("\n")
    assert "has no rows" in complaint(file)
    assert str(tmp_path / "no.parquet") in complaint(tmp_path / "no.parquet")
    whole = json.dumps(row())
    file.write_text(f"{whole}\n{whole[:200]}")
    assert f"{file}, line 2 (row 1) is not complete JSON (column" in complaint(file)
    file.write_text(f"\n{whole}\n" + "[" * 100_000)
    assert f"{file}, line 3 (row 1) is not complete JSON (nested too deeply)" in complaint(file)
    file.write_bytes(whole.encode() + b"\n" + json.dumps(row(answer="é"), ensure_ascii=False).encode("latin-1"))
    assert f"{file}, line 2 (row 1) is not UTF-8" in complaint(file)
    long = row(1, codes={"capital": CAPITAL + "#" * 10_000_000, "people": PEOPLE})
    assert f"{file}, line 2 (row 1) has 10,00" in complaint(write(file, [row(), long]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(), long]), file.with_suffix(".parquet"))
    assert "row 1 has 10,00" in complaint(file.with_suffix(".parquet"))


TWICE = [function("capital"), function("capital")]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("messages", [], "messages: expected a list of messages"),
        ("messages", [{"role": "user"}], "messages: expected a list of messages"),
        ("messages", [{"role": "user", "content": "Hi"}], "messages: the last is not a user message with a line"),
        ("answer", 3, "answer: expected a string, got int"),
        ("tools", "[{", "tools: bad JSON (column 3"),
        ("tools", "[" * 100_000, "tools: bad JSON (nested too deeply)"),
        ("tools", f"[{'9' * 5000}]", "tools: bad JSON (a number is too long)"),
        ("tools", [], "tools: expected a non-empty list"),
        ("tools", [{"name": "capital"}], "tools: expected functions with a name and parameters"),
        ("tools", TWICE, "tools: the name capital occurs twice"),
        ("codes", {"capital": CAPITAL}, "codes: no source for the tool people"),
        ("codes", {"capital": 3}, "codes: expected an object"),
        ("codes", "none", "codes: bad JSON"),
        ("unsolved_set", {"capital": "Brondal"}, "unsolved_set: expected an object"),
        ("unsolved_set", {"capital": []}, "unsolved_set: has no results"),
        ("unsolved_set", {"capital": [3]}, "unsolved_set: capital: expected strings"),
        ("unsolved_set", {"mayor": ["x"]}, "unsolved_set: there is no tool mayor"),
        ("ground_truth", {"name": "capital"}, "ground_truth: expected a list"),
        ("ground_truth", [{"name": "mayor", "parameters": {}}], "ground_truth: expected calls of the row's tools"),
        ("ground_truth", [{"name": "capital"}], "ground_truth: expected calls of the row's tools"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    file = write(tmp_path / "test.jsonl", [row(), row(1, **{field: value})])
    assert f"{file}, line 2 (row 1), {reason}" in complaint(file)


@pytest.mark.parametrize("field", ["messages", "tools", "codes", "unsolved_set", "answer"])
def test_missing_fields_are_named(tmp_path: Path, field: str) -> None:
    broken = {key: value for key, value in row().items() if key != field}
    file = write(tmp_path / "test.jsonl", [row(), row(1), broken])
    assert f"{file}, line 3 (row 2), {field}: missing" in complaint(file)
    assert f"{file}, line 1 (row 0), whole row: expected an object" in complaint(write(file, [[]]))


# -- execution and scores --------------------------------------------------------------------------------------------


def test_observations_and_errors(tmp_path: Path) -> None:
    loaded, task = one_task(tmp_path)
    environment = loaded.environment(task)
    for name, arguments, observation in [
        ("capital", {"country": "Norland"}, "Brondal"),  # a string as it is
        ("people", '{"city": "Brondal"}', '{"count": "1,200", "unit": "one"}'),  # a dict as JSON
        ("people", {"city": "x"}, "é"),
        ("mayor", {}, f"{ERROR_PREFIX} mayor: 'mayor'"),  # KeyError
        ("people", {"town": 1}, f"{ERROR_PREFIX} people: people() got an unexpected keyword argument 'town'"),
    ]:
        call = environment.call(name, arguments, turn=0)
        assert call.observation == observation and call.error == observation.startswith(ERROR_PREFIX)


def test_score(tmp_path: Path) -> None:
    loaded, task = one_task(tmp_path)
    right, wrong = ToolCall(0, "people", {}, "1200"), ToolCall(0, "capital", {}, "Marn")
    score = loaded.score(task, trajectory([right, wrong, wrong]))
    # one of three calls, one of two golds, 2 * 1 / (3 + 2)
    assert score.metrics == {"solve_p": 1 / 3, "solve_r": 1 / 2, "solve_f1": 2 / 5}
    assert score.cluster == "self/single_hop" and loaded.solve_metric in score.metrics
    assert loaded.score(task, trajectory([])).metrics == {"solve_p": 1, "solve_r": 0, "solve_f1": 0}


def test_mended_rules(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [row()])
    loaded = bench(file, rules="corrected")
    [task] = loaded.tasks("test")
    echo = ToolCall(0, "people", {}, f"{ERROR_PREFIX} people: 1200", error=True)
    within = ToolCall(0, "capital", {}, "Brondalen")
    right = ToolCall(0, "people", {}, "it has 1,200 people")
    # only the last of three solves one of two golds; nothing at all is precision 0
    assert loaded.score(task, trajectory([echo, within, right])).metrics["solve_p"] == 1 / 3
    assert loaded.score(task, trajectory([])).metrics == {"solve_p": 0, "solve_r": 0, "solve_f1": 0}


def official(shared: Path) -> Iterator[tuple[dict[str, Any], list[ToolCall]]]:
    """Every recorded official episode with its calls and what the tools returned."""
    for line in (shared / "parity/ftrl.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        outputs = [message["content"] for message in record["messages"] if message["role"] == "tool"]
        calls = [
            ToolCall(call["turn"], call["name"], call["arguments"], output, call["error"])
            for call, output in zip(record["calls"], outputs, strict=True)
        ]
        yield record, calls


def test_parity_of_scores(shared: Path) -> None:
    loaded = bench(shared / "data/ftrl/test.jsonl")
    tasks = loaded.tasks("test")
    checked = 0
    for record, calls in official(shared):
        task, expected = tasks[record["row"]], record["official"]
        score = loaded.score(task, trajectory(calls, record["messages"]))
        assert score.cluster == record["data_source"]
        names = {"solve_p": "solve_precision", "solve_r": "solve_rate", "solve_f1": "solve_f1"}
        values = {name: expected[official_name] for name, official_name in names.items()}
        assert score.metrics == pytest.approx(values, abs=1e-12), record["case"]
        checked += 1
    assert checked == 932


def test_parity_of_execution(shared: Path) -> None:
    """The official outputs, on a sample; error texts name Python's own modules and so agree in their beginning."""
    loaded = bench(shared / "data/ftrl/test.jsonl")
    tasks = loaded.tasks("test")
    recorded = [(record["row"], call) for record, calls in official(shared) if not record["volatile"] for call in calls]
    for number, call in random.Random(0).sample(recorded, 500):
        made = loaded.environment(tasks[number]).call(call.name, call.arguments, turn=call.turn)
        assert made.error == call.error
        if call.error:
            prefix = f"{ERROR_PREFIX} {call.name}: "
            assert made.observation.startswith(prefix) and call.observation.startswith(prefix)
        else:
            assert made.observation == call.observation


# -- expert traces ---------------------------------------------------------------------------------------------------


def test_reference_calls_become_a_trace(tmp_path: Path) -> None:
    calls = [
        {"name": "capital", "parameters": {"country": "Norland"}},
        {"name": "people", "parameters": {"city": "Brondal"}},
    ]
    loaded, task = one_task(tmp_path, ground_truth=calls)
    trace = loaded.expert_trace(task)
    assert trace is not None and (trace.source, trace.answer) == ("path", "1,200")
    assert trace.calls == [{"name": c["name"], "arguments": c["parameters"]} for c in calls]
    assert [turn.observations for turn in trace.turns] == [("Brondal",), ('{"count": "1,200", "unit": "one"}',)]
    assert loaded.expert_trace(task) is trace


@pytest.mark.parametrize(
    "calls",
    [
        [{"name": "capital", "parameters": {"country": "Norland"}}],  # a gold is left
        [{"name": "capital", "parameters": {"land": "Norland"}}],  # fails
        [],
    ],
)
def test_other_rows_are_mined(tmp_path: Path, calls: list[Any]) -> None:
    example = f"{CAPITAL}\n# capital(country='Norland')"
    sources = {"capital": example, "people": PEOPLE}
    loaded, task = one_task(tmp_path, ground_truth=calls, codes=sources, answer="1,200 souls")
    trace = loaded.expert_trace(task)
    assert trace is not None and (trace.source, trace.answer) == ("mined", "1,200 souls")
    assert [call["arguments"] for call in trace.calls] == [{"country": "Norland"}, {"city": "Brondal"}]
    ungiven = {"capital": ["Oslo"], "people": ["1,200"]}
    loaded, task = one_task(tmp_path, ground_truth=calls, unsolved_set=ungiven)
    assert loaded.expert_trace(task) is None
