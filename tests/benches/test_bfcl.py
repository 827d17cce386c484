"""BFCL: the official verdicts on recorded episodes, and calls that are safe to make."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agentrl.benches.bfcl.calls import REFUSED, RefusedCall, call_string, decode_calls, decode_text, safe_string
from agentrl.benches.bfcl.data import DataFiles, tool_schema
from agentrl.benches.bfcl.simulator import package_dir
from agentrl.benches.bfcl.verdicts import FORCE_TERMINATED
from tests.support.bfcl_play import bench_of, needs_bfcl

pytestmark = needs_bfcl


@pytest.fixture(scope="module")
def bench():
    return bench_of("bench.categories=[multi_turn]")


def records(shared: Path, name: str):
    return [json.loads(line) for line in (shared / "parity" / f"{name}.jsonl").read_text().splitlines()]


# -- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["calls", "text", "messages"])
def test_multi_turn_verdicts_are_the_official_ones(bench, shared, held):
    """All records as calls; a fifth of them again as raw text, and as chat messages."""
    for number, record in enumerate(records(shared, "bfcl_multi_turn")):
        official = record["official"]
        item = {"row": record["row"], "category": record["category"]}
        if held == "calls":
            item["turns"] = [[{"calls": step["calls"]} for step in turn] for turn in record["turns"]]
        elif number % 5:
            continue
        elif held == "text":
            item = {"id": record["row_id"], "turns": [[step["text"] for step in turn] for turn in record["turns"]]}
        elif all(record["turns"]):  # a turn that the model was never asked in cannot be told from messages
            item["messages"] = [{"role": "system", "content": "Tools."}]
            for turn in record["turns"]:
                item["messages"].append({"role": "user", "content": "?"})
                item["messages"] += [{"role": "assistant", "content": step["text"]} for step in turn]
        else:
            continue
        metrics, reason = bench.score_transcript(item)
        assert (metrics, reason) == ({"valid": float(official["valid"])}, official["error_type"]), record["case"]


def test_texts_decode_as_the_official_handler_decodes_them(shared):
    for record in records(shared, "bfcl_multi_turn"):
        for step in (step for turn in record["turns"] for step in turn):
            assert decode_text(step["text"]) == step["calls"], record["case"]


@pytest.mark.parametrize(("name", "category"), [("bfcl_memory", "memory_kv"), ("bfcl_web_search", "web_search_base")])
def test_answers_are_judged_as_officially(bench, shared, name, category):
    for record in records(shared, name):
        official = record["official"]
        expected = {"correct": float(official["valid"])}, official["error_type"]
        assert bench.score_transcript({**record, "category": category}) == expected, record["case"]
        by_id = {"id": record["row_id"], "response": record["response"]}
        assert bench.score_transcript(by_id) == expected, record["case"]


def test_the_last_message_without_a_call_is_judged(bench):
    call = '<tool_call>\n{"name": "core_memory_list_keys", "arguments": {}}\n</tool_call>'
    said = [{"role": "assistant", "content": text} for text in (call, "Michael")]
    item = {"id": "memory_kv_0-customer-0"}
    assert bench.score_transcript({**item, "messages": said}) == ({"correct": 1.0}, None)
    assert bench.score_transcript({**item, "messages": said[:1]}) == ({"correct": 0.0}, "agentic:no_last_message")
    assert bench.score_transcript({**item, "turns": [[call, "Michelle"]]})[0] == {"correct": 0.0}
    assert bench.score_transcript({**item, "turns": [["Michael"], ["Michael"]]}) == (
        {"correct": 0.0},
        "agentic:inference_error",
    )
    assert bench.score_transcript({"row": 0, "category": "memory", "messages": said})[0] == {"correct": 1.0}
    # The official handler keeps no thought of a step; a `response` given as such is taken as it is.
    for text, right in (("<think>Michael</think>\n\nMichelle", 0.0), ("<think>Michelle</think>Michael", 1.0)):
        assert bench.score_transcript({**item, "turns": [[text]]})[0] == {"correct": right}
        assert bench.score_transcript({**item, "response": text})[0] == {"correct": 1.0}
    assert bench.score_transcript({**item, "turns": [["<think>Michael</think>\n"]]})[1] == "agentic:no_last_message"


def test_a_category_file_as_path_names_the_rows():
    path = package_dir() / "data" / "BFCL_v4_multi_turn_miss_param.json"
    bench = bench_of(f"bench.path={path}")
    assert bench.categories == ("multi_turn_miss_param",)
    assert bench.score_transcript({"row": 3, "turns": []}) == ({"valid": 0.0}, FORCE_TERMINATED)
    memory = bench_of(f"bench.path={package_dir() / 'data' / 'BFCL_v4_memory.json'}", "bench.categories=[multi_turn]")
    assert memory.score_transcript({"row": 0, "response": "Michael"}) == ({"correct": 1.0}, None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"turns": []}, "row: expected|several data files"),
        ({"id": "multi_turn_base_999", "turns": []}, "no item 'multi_turn_base_999'"),
        ({"id": "multi_turn_base_0"}, "expected `turns`"),
        ({"id": "multi_turn_base_0", "turns": [3]}, "turns:"),
        ({"id": "multi_turn_base_0", "turns": [[3]]}, "turns:"),
        ({"id": "multi_turn_base_0", "turns": [[{"text": 3}]]}, "turns:"),
        ({"id": "multi_turn_base_0", "messages": [{"role": "assistant", "content": ["x"]}]}, "content of message 0"),
        ({"id": "multi_turn_base_0", "messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "tool_calls of mess"),
        ({"row": 0, "category": ["multi_turn_base"], "turns": []}, "not a category"),
        ({"row": True, "category": "multi_turn_base", "turns": []}, "row: expected"),
        ({"row": 200, "category": "multi_turn_base", "turns": []}, "0 to 199"),
        ({"row": 0, "category": "simple_python", "turns": []}, "not a category"),
    ],
)
def test_a_record_that_cannot_be_scored_says_why(bench, record, reason):
    metrics, why = bench.score_transcript(record)
    assert metrics == {} and re.search(reason, why)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_values_are_written_by_repr_and_names_are_whitelisted(tmp_path):
    assert call_string("cd", {"folder": "a'b\"c\n"}, {"cd"}) == "cd(folder='a\\'b\"c\\n')"
    assert (
        call_string(" cd ", {"x": None, "y": [True, 1.5, {"k": "v"}]}, {"cd"}) == "cd(x=None,y=[True, 1.5, {'k': 'v'}])"
    )
    assert call_string("cd", {" folder\n": 1}, {"cd"}) == "cd( folder\n=1)"  # good Python, as the official code has it
    evil = f"open({str(tmp_path / 'owned')!r}, 'w')"
    for name in (f"cd(folder={evil}) or cd", evil, "__import__('os').abort", "print", "cd;x", ""):
        with pytest.raises(RefusedCall):
            call_string(name, {}, {"cd"})
    for key in (f"x={evil}, folder", "class", "a b", "a.b", "", "*args"):
        with pytest.raises(RefusedCall):
            call_string("cd", {key: 1}, {"cd"})
    assert safe_string("print", {}, {"cd"}) == REFUSED


def test_model_text_is_never_evaluated(bench, tmp_path):
    mark = tmp_path / "owned"
    evil = f"open({str(mark)!r}, 'w').write('x')"
    task = bench.tasks("test")[0]
    environment = bench.environment(task)
    attempts = [
        (evil, {}),
        (f"ls() or {evil} or ls", {}),
        ("ls", {f"a={evil}, b": 1}),
        ("cd", {"folder": f"' + {evil} + '"}),
        ("cd", f'{{"folder": "x"}} or {evil}'),
    ]
    for name, arguments in attempts:
        observation = environment.call(name, arguments, 0).observation
        assert observation.startswith("Error during execution: ") or '"error"' in observation, (name, observation)
    turns = [[{"calls": [{"name": name, "arguments": arguments}]} for name, arguments in attempts]]
    bench.score_transcript({"id": task.id, "turns": turns * len(task.data["entry"].gold)})
    assert not mark.exists()


def test_steps_that_do_not_decode():
    assert decode_calls([{"name": "ls", "arguments": "{}"}]) == [("ls", {})]
    for calls in (
        [{"name": "ls"}],
        [["ls"]],
        [{"name": "ls", "arguments": None}],
        [{"name": "ls", "arguments": "[1]"}],
        [{"name": ["ls"], "arguments": {}}],
        [{"name": {"ls": 1}, "arguments": {}}],
    ):
        assert decode_calls(calls) is None
    assert decode_calls([{"name": 5, "arguments": {}}]) == [("5", {})]  # decodes, and fails when executed


def test_function_docs_become_json_schemas():
    for doc in DataFiles().docs(["TradingBot", "VehicleControlAPI", "MathAPI", "TravelAPI", "MemoryAPI_kv"]):
        schema = tool_schema(doc)["function"]["parameters"]
        kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(schema)))
        assert schema["type"] == "object"
        assert kinds <= {"object", "string", "number", "integer", "array", "boolean"}
        assert doc["parameters"]["type"] == "dict", "the doc itself must stay as it was"
