"""ToolHop: loading and its complaints, prompts, execution and scoring, against the official episodes where present."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches.execution import ToolEnvironment, json_text, key_error, plain_text
from agentrl.benches.toolhop import PROMPTS, ToolHopBench
from agentrl.benches.toolhop_rows import load_rows
from agentrl.config.benches import ToolHop
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.sandbox import Result, Sandbox
from tests.support.toolhop_rows import rows

CONFIG = ToolHop(
    name="toolhop", path=None, hub_id="nobody/nothing", scenario="mandatory", rule="toolhop", rules="official",
    test_fraction=0.34, data_seed=0,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, rows())


def write(directory: Path, content: Any) -> Path:
    file = directory / "ToolHop.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, timeout_s=5) as shared_sandbox:
        yield shared_sandbox


def bench(path: Path, **changes: Any) -> ToolHopBench:
    return ToolHopBench(CONFIG.model_copy(update={"path": str(path), **changes}))


def all_tasks(loaded: ToolHopBench) -> dict[str, Any]:
    return {task.id: task for split in ("train", "test") for task in loaded.tasks(split)}


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks(path: Path) -> None:
    loaded = bench(path)
    tasks = all_tasks(loaded)
    assert sorted(tasks) == ["toolhop-1", "toolhop-2", "toolhop-3"]
    assert [len(loaded.tasks(split)) for split in ("train", "test")] == [2, 1]
    task = tasks["toolhop-1"]
    assert (task.answer, task.cluster) == ("18", "3 hops")
    assert [t["function"]["name"] for t in task.tools] == ["mayor_of", "birth_year", "digit_sum"]
    assert task.tools[0]["type"] == "function"
    assert task.prompt == [{"role": "user", "content": PROMPTS["mandatory"] + rows()[0]["question"]}]


def test_division_depends_on_the_data_seed_alone(shared: Path) -> None:
    file = shared / "data/toolhop/ToolHop_subset100.json"
    first = [task.id for task in bench(file, test_fraction=0.3).tasks("test")]
    assert len(first) == 21 and first == [task.id for task in bench(file, test_fraction=0.3).tasks("test", seed=5)]
    assert first != [task.id for task in bench(file, test_fraction=0.3, data_seed=1).tasks("test")]
    limited = [task.id for task in bench(file, test_fraction=0.3).tasks("test", limit=4, seed=5)]
    assert len(limited) == 4 and set(limited) < set(first)
    assert limited == [task.id for task in bench(file, test_fraction=0.3).tasks("test", limit=4, seed=5)]


def test_prompts_are_the_official_ones() -> None:
    assert PROMPTS["direct"] == (
        "You will be asked a question, and should provide a short answer.\nIf the answer is a date, format is as "
        "follows: YYYY-MM-DD (ISO standard)\nIf the answer is a name, format it as follows: Firstname Lastname\nIf the "
        "answer contains any number, format it as a number, not a word, and only output that number. Do not include "
        "leading 0s.\n\nPlease provide the answer in the following format: <answer>your answer here</answer>\nAnswer "
        "as short as possible.\nQuestion: "
    )
    assert PROMPTS["mandatory"] == (
        "You will be asked a question with some tools, and should provide a short final answer.\nPlease note that you "
        "must call the tool at every step, you must not use your own knowledge. Your final answer must also be "
        "returned from the tool.\nIf the final answer is a date, format is as follows: YYYY-MM-DD (ISO standard)\nIf "
        "the final nswer is a name, format it as follows: Firstname Lastname\nIf the final answer contains any number, "
        "format it as a number, not a word, and only output that number. Do not include leading 0s.\n\nPlease provide "
        "the final answer in the following format: <answer>final answer here</answer>\nAnswer as short as "
        "possible.\nQuestion: "
    )
    must = "Please note that you must call the tool at every step, you must not use your own knowledge. "
    must += "Your final answer must also be returned from the tool.\n"
    assert PROMPTS["free"] == PROMPTS["mandatory"].replace(must, "") and must in PROMPTS["mandatory"]


def test_direct_scenario_has_no_tools(path: Path) -> None:
    loaded = bench(path, scenario="direct")
    task = all_tasks(loaded)["toolhop-1"]
    assert task.tools == [] and loaded.expert_trace(task) is None
    assert loaded.environment(task).call("digit_sum", {"numbers": [1]}, 0).error
    score = loaded.score(task, trajectory(final="<answer>18</answer>"))
    assert score.metrics == {"answer_correct": 1.0}


def test_dictionary_forms(tmp_path: Path) -> None:
    listed = rows()
    keyed = {str(r["id"]): {k: v for k, v in r.items() if k != "id"} for r in copy.deepcopy(listed)}
    for r in keyed.values():
        r["functions"] = {t["name"]: s for t, s in zip(r["tools"].values(), r["functions"], strict=True)}
    assert load_rows(write(tmp_path, keyed)) == load_rows(write(tmp_path, listed))


def test_the_last_source_of_a_name_wins(tmp_path: Path) -> None:
    changed = rows()
    changed[0]["functions"].append("def digit_sum(numbers):\n    return 'later'")
    task = all_tasks(bench(write(tmp_path, changed)))["toolhop-1"]
    call = bench(write(tmp_path, changed)).environment(task).call("digit_sum", {"numbers": [1]}, 0)
    assert call.observation == '"later"'


# -- bad files -------------------------------------------------------------------------------------------------------


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        bench(path).tasks("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no.json (No such file or directory)" in complaint(tmp_path / "no.json")
    assert "Is a directory" in complaint(tmp_path)
    whole = json.dumps(rows(), indent=1)
    assert "line" in complaint(write(tmp_path, whole[: len(whole) // 2]))
    assert "not complete JSON (column 1, Expecting value)" in complaint(write(tmp_path, ""))
    assert "nested too deeply" in complaint(write(tmp_path, "[" * 100_000))
    assert "has no rows" in complaint(write(tmp_path, []))
    assert "has no rows" in complaint(write(tmp_path, "3"))
    long = rows()
    long[1]["question"] = "?" * 10_000_000
    assert "row 1 has 10,00" in complaint(write(tmp_path, long))
    latin = tmp_path / "latin.json"
    latin.write_bytes(json.dumps(rows(), ensure_ascii=False).encode("latin-1"))
    assert "not UTF-8" in complaint(latin)


def test_offline_hub_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing .*give a local ToolHop.json as bench.path"):
        ToolHopBench(CONFIG).tasks("train")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("answer", 18, "row 1, answer: expected a string, got int"),
        ("question", None, "row 1, question: expected a string"),
        ("id", None, "row 1, id: expected"),
        ("id", 1, "row 1, id: row 0 also has the id 1"),
        ("sub_task", {}, "row 1, sub_task: expected a non-empty object"),
        ("sub_task", {"What is the concatenation of q and z?": 3}, "row 1, sub_task: expected sub-questions"),
        ("sub_task", {"other": "qz"}, "row 1, tools: its sub-questions differ"),
        ("tools", [], "row 1, tools: expected an object"),
        ("tools", {"What is the concatenation of q and z?": {"name": 3}}, "row 1, tools: expected tools with a name"),
        ("functions", "def f(): pass", "row 1, functions: expected a list"),
        ("functions", {"join_letters": 3}, "row 1, functions: expected a list"),
        ("functions", ["def other(): pass"], "row 1, functions: no source defines the tool join_letters"),
        ("functions", ["no definition"], "row 1, functions: no source defines the tool join_letters"),
    ],
)
def test_malformed_rows(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    changed = rows()
    changed[1][field] = value
    assert reason in complaint(write(tmp_path, changed))
    del changed[1][field]
    assert f"row 1, {field}: missing" in complaint(write(tmp_path, changed))
    assert "row 0, whole row: expected an object" in complaint(write(tmp_path, ["x"]))


# -- execution -------------------------------------------------------------------------------------------------------


def test_observations_and_errors(path: Path) -> None:
    loaded = bench(path)
    environment = loaded.environment(all_tasks(loaded)["toolhop-1"])

    def observe(name: Any, arguments: Any) -> tuple[str, bool]:
        call = environment.call(name, arguments, 3)
        assert call.turn == 3 and call.name == name
        return call.observation, call.error

    assert observe("mayor_of", {"city": "Brondal"}) == ('"Odda Fjelle"', False)
    assert observe("mayor_of", '{"city": "Brondal"}') == ('"Odda Fjelle"', False)
    assert observe("mayor_of", {"city": "Grå"}) == ('{"error": "no mayor of Grå"}', False)  # the tool's own affair
    prefix = "an error occured when call"
    assert observe("nope", {}) == (f"{prefix} nope: name 'nope' is not defined", True)
    assert observe("mayor_of", {"city": 3}) == (f"{prefix} mayor_of: city must be a string", True)
    unexpected = "mayor_of() got an unexpected keyword argument 'town'"
    assert observe("mayor_of", {"town": "x"}) == (f"{prefix} mayor_of: {unexpected}", True)
    for arguments in ([1], None, 3, "[1]", '"x"', "{broken", "[" * 100_000, {"city": {1}}):
        text, error = observe("mayor_of", arguments)
        assert error and text.startswith(f"{prefix} mayor_of: ")
    assert observe(["mayor_of"], {})[1]


def test_formats() -> None:
    values = {"d": "{'a': 'é'}", "s": "'é'", "t": "(1, 'x')", "n": "None", "z": "{1, 2}", "f": "1.50"}
    sources = {name: f"def {name}(): return {value}" for name, value in values.items()}
    with Sandbox() as sandbox:
        ftrl = ToolEnvironment(sources, plain_text, sandbox)
        toolhop = ToolEnvironment(sources, json_text, sandbox)
        assert [ftrl.call(n, {}, 0).observation for n in "dstnzf"] == [
            '{"a": "é"}', "é", "(1, 'x')", "None", "{1, 2}", "1.5",
        ]  # fmt: skip
        assert [toolhop.call(n, {}, 0).observation for n in "dstnzf"] == [
            '{"a": "é"}', '"é"', '[1, "x"]', "null",
            "an error occured when call z: Object of type set is not JSON serializable", "1.5",
        ]  # fmt: skip
        assert ftrl.call("q", {}, 0).observation == "an error occured when call q: 'q'"
    assert key_error("x") == "'x'"
    with pytest.raises(ValueError, match="circular"):
        plain_text(Result(type="list", json_error="circular"))


def test_official_observations(shared: Path, sandbox: Sandbox) -> None:
    """Every executed call of the recorded official episodes gives the same text here."""
    loaded = load_rows(shared / "data/toolhop/ToolHop_subset100.json")
    by_id = {row.id: row for row in loaded}
    checked = 0
    done: dict[tuple[str, str], str] = {}
    for line in (shared / "parity/toolhop.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["volatile"]:
            continue
        row = by_id[str(record["row_id"])]
        environment = ToolEnvironment(
            row.sources, json_text, sandbox, unknown_tool=lambda name: f"name {name!r} is not defined"
        )
        messages = record["toolhop"]["messages"]
        for index, message in enumerate(messages):
            for offset, call in enumerate(message.get("parsed_calls", [])):
                key = (row.id, json.dumps(call))
                if key not in done:
                    done[key] = environment.call(call["name"], call["arguments"], 0).observation
                assert done[key] == messages[index + 1 + offset]["content"], record["case"]
                checked += 1
    assert checked > 1000


# -- scores ----------------------------------------------------------------------------------------------------------


def trajectory(final: str | None = None, calls: list[ToolCall] | None = None) -> Trajectory:
    calls = calls or []
    messages: list[dict[str, Any]] = [{"role": "tool", "content": call.observation} for call in calls]
    if final is not None:
        messages.append({"role": "assistant", "content": final})
    return Trajectory("t", [], [], [], [], [], messages, calls)


def made(name: str, observation: str, error: bool = False) -> ToolCall:
    return ToolCall(0, name, {}, observation, error)


def test_score(path: Path) -> None:
    loaded = bench(path)
    task = all_tasks(loaded)["toolhop-1"]
    calls = [made("mayor_of", '"Odda Fjelle"'), made("birth_year", "x", True), made("birth_year", "1962")]
    score = loaded.score(task, trajectory("<answer>19</answer>", calls))
    assert score.cluster == "3 hops"
    # 3 calls, 2 of 3 golds: P 2/3, R 2/3, F1 2*2/(3+3)
    assert score.metrics == pytest.approx({"answer_correct": 0, "solve_p": 2 / 3, "solve_r": 2 / 3, "solve_f1": 2 / 3})
    assert "answer_correct" not in loaded.score(task, trajectory(None, calls)).metrics
    assert "answer_correct" not in loaded.score(task, trajectory("", calls)).metrics
    # the tool output before the final text counts as well
    assert (
        loaded.score(task, trajectory("done", [made("digit_sum", '{"result": [18]}')])).metrics["answer_correct"] == 1
    )
    assert loaded.score(task, trajectory("hm")).metrics["solve_p"] == 1


def test_mended_rules(path: Path) -> None:
    loaded = bench(path, rule="ftrl", rules="corrected")
    task = all_tasks(loaded)["toolhop-1"]
    for text, right in (("<answer>18.0</answer>", 1), ("<answer>180</answer>", 0), (None, 0)):
        assert loaded.score(task, trajectory(text)).metrics["answer_correct"] == right
    strict = bench(path, rule="strict", rules="corrected")
    assert strict.score(task, trajectory("18")).metrics["answer_correct"] == 0


def test_score_follows_the_rule(path: Path) -> None:
    scores = {}
    for rule in ("toolhop", "ftrl", "strict"):
        loaded = bench(path, rule=rule)
        task = all_tasks(loaded)["toolhop-1"]
        scores[rule] = [
            loaded.score(task, trajectory(text)).metrics.get("answer_correct")
            for text in ("<answer>18</answer>", "it is 18", "1,8", "", None)
        ]
    assert scores == {"toolhop": [1, 1, 1, None, None], "ftrl": [1, 1, 1, 0, 0], "strict": [1, 0, 0, 0, 0]}
