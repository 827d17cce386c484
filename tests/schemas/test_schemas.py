"""Tool parameters in every form that authors write: read, solved by the miner, rendered in prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.chat_template_utils import gemma4_chat_template, gptoss_chat_template, qwen3_5_template

from agentrl.benches import load_bench
from agentrl.benches.execution import ToolEnvironment, plain_text
from agentrl.benches.ftrl_rows import load_rows
from agentrl.chat.reading import TokenReader
from agentrl.mining import search
from agentrl.mining.mine import MinedTrace, Miner, Question
from agentrl.mining.search import Hop
from agentrl.models.loading import checkpoint_path
from agentrl.sandbox import Sandbox
from agentrl.schemas.plain import Reader, allows, make_renderable, plain_parameters
from tests.benches.test_ftrl import HEAD, write
from tests.benches.test_ftrl import bench as ftrl_bench
from tests.benches.test_ftrl import row as ftrl_row
from tests.support.helpers import composed

WHOLE = """
def code_of(room, floor=None):
    if type(room) is not int:
        raise TypeError("room must be an integer")
    return "K" + str(room * 7)
"""
INSIDE = """
def code_of(room):
    return "K" + str(room["number"] * 7) if isinstance(room, dict) else "none"
"""
LISTED = """
def code_of(room):
    return "K" + str(sum(one["number"] if isinstance(one, dict) else one for one in room) * 7)
"""
INTEGER = {"type": "integer"}
ROOM = {"type": "object", "properties": {"number": INTEGER}, "required": ["number"]}


def of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"room": schema}, "required": ["room"], **more}


FORMS: dict[str, tuple[Any, str]] = {
    "plain": (of(INTEGER), WHOLE),
    "null": (of(None), WHOLE),
    "true": (of(True), WHOLE),
    "nothing said": (of({}), WHOLE),
    "the name of a type": (of("integer"), WHOLE),
    "words": (of("The number of the room"), WHOLE),
    "a list of types": (of(["null", "integer"]), WHOLE),
    "required: true": (of(INTEGER, required=True), WHOLE),
    "required: true of the property": (of({**INTEGER, "required": True}, required=False), WHOLE),
    "required: a name": (of(INTEGER, required="room"), WHOLE),
    "required: null": (of(INTEGER, required=None), WHOLE),
    "properties as a list": (of(None) | {"properties": [{"name": "room", "type": "integer"}]}, WHOLE),
    "properties as a list with schemas": (of(None) | {"properties": [{"name": "room", "schema": INTEGER}]}, WHOLE),
    "properties as a list of objects": (of(None) | {"properties": [{"room": INTEGER}]}, WHOLE),
    "properties as a list of names": (of(None) | {"properties": ["room"]}, WHOLE),
    "properties without their frame": ({"room": INTEGER}, WHOLE),
    "anyOf": (of({"anyOf": [{"type": "null"}, INTEGER]}), WHOLE),
    "oneOf": (of({"oneOf": [{"type": "string"}, INTEGER]}), WHOLE),
    "anyOf beside a description": (of({"description": "room", "anyOf": [INTEGER, {"type": "null"}]}), WHOLE),
    "allOf": (of({"allOf": [INTEGER, {"minimum": 1}]}), WHOLE),
    "allOf of the whole": ({"allOf": [{"properties": {"room": INTEGER}}, {"required": ["room"]}]}, WHOLE),
    "$ref": (of({"$ref": "#/$defs/Room"}, **{"$defs": {"Room": INTEGER}}), WHOLE),
    "$ref to a $ref": (of({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": INTEGER}}), WHOLE),
    "$ref to definitions": (of({"$ref": "#/definitions/Room"}, definitions={"Room": INTEGER}), WHOLE),
    "$ref of the whole": ({"$ref": "#/$defs/In", "$defs": {"In": of(INTEGER)}}, WHOLE),
    "$ref beside words": (of({"$ref": "#/$defs/R", "description": "x"}, **{"$defs": {"R": INTEGER}}), WHOLE),
    "$ref to an anchor": (of({"$ref": "#r"}, **{"$defs": {"R": {"$anchor": "r", "type": "integer"}}}), WHOLE),
    "$ref to itself": (of({"$ref": "#/properties/room"}), WHOLE),
    "$ref to nowhere": (of({"$ref": "#/$defs/None"}), WHOLE),
    "$ref elsewhere": (of({"$ref": "https://example.org/room.json"}), WHOLE),
    "const": (of({"const": 12}), WHOLE),
    "consts": (of({"oneOf": [{"const": 11}, {"const": 12}]}), WHOLE),
    "enum without a type": (of({"enum": [11, 12, 13]}), WHOLE),
    "enum as an object": (of({"type": "integer", "enum": {"12": "a"}}), WHOLE),
    "enum or another": (of({"anyOf": [{"enum": [3]}, INTEGER]}), WHOLE),
    "a type list": (of({"type": ["integer", "null"]}), WHOLE),
    "a type list, null first": (of({"type": ["null", "integer"]}), WHOLE),
    "nullable": (of({"type": "integer", "nullable": True}), WHOLE),
    "Python's names": ({"type": "dict", "properties": {"room": {"type": "int"}}, "required": ["room"]}, WHOLE),
    "upper case": ({"type": "OBJECT", "properties": {"room": {"type": "INTEGER"}}, "required": ["room"]}, WHOLE),
    "Optional[int]": (of({"type": "Optional[int]"}), WHOLE),
    "int | None": (of({"type": "int | None"}), WHOLE),
    "Union[str, int]": (of({"type": "typing.Union[str, int]"}), WHOLE),
    "Literal": (of({"type": "Literal[11, 12]"}), WHOLE),
    "float": (of({"type": "float"}), WHOLE.replace("is not int", "is bool").replace("room * 7", "int(room * 7)")),
    "any": (of({"type": "any"}), WHOLE),
    "an unknown name": (of({"type": "roomnumber"}), WHOLE),
    "bounds": (of({"type": "integer", "minimum": 12, "exclusiveMaximum": 13, "multipleOf": 2}), WHOLE),
    "bounds that are none": (of({"type": "integer", "minimum": "one", "pattern": "("}), WHOLE),
    "if and not": (of({"type": "integer", "not": {"const": 7}, "if": {"minimum": 3}, "then": {"maximum": 20}}), WHOLE),
    "an object": (of(ROOM), INSIDE),
    "an object by $ref": (of({"$ref": "#/$defs/R"}, **{"$defs": {"R": ROOM}}), INSIDE),
    "an object or null": (of({"anyOf": [ROOM, {"type": "null"}]}), INSIDE),
    "a list of integers": (of({"type": "array", "items": INTEGER}), LISTED),
    "list[int]": (of({"type": "list[int]"}), LISTED),
    "array of integers": (of({"type": "array of integers"}), LISTED),
    "a list by $ref": (of({"type": "list", "items": {"$ref": "#/$defs/R"}}, **{"$defs": {"R": INTEGER}}), LISTED),
    "prefixItems": (of({"type": "array", "prefixItems": [INTEGER]}), LISTED),
    "items as a list": (of({"type": "array", "items": [INTEGER]}), LISTED),
    "a list of objects": (of({"type": "array", "items": ROOM}), LISTED),
    "objects by $ref": (of({"type": "list", "items": {"$ref": "#/$defs/R"}}, **{"$defs": {"R": ROOM}}), LISTED),
}  # fmt: skip


@pytest.fixture(scope="module")
def miner() -> Miner:
    return Miner()


@pytest.fixture(scope="module")
def tools_sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_solved(form: str, miner: Miner, tools_sandbox: Sandbox) -> None:
    parameters, source = FORMS[form]
    tool = {"name": "code_of", "description": "The code of a room", "parameters": parameters}
    text, sources = "What is the code of room 12?", {"code_of": source}
    question = Question("t", text, "K84", [Hop(text, "K84", tool)], sources, ordered=False)
    outcome = miner.mine(question, ToolEnvironment(sources, plain_text, tools_sandbox), lambda trace: True)
    assert isinstance(outcome, MinedTrace), outcome
    ((name, arguments),) = [(call["name"], call["arguments"]) for call in outcome.trace.calls]
    assert (name, list(arguments)) == ("code_of", ["room"]) and "12" in json.dumps(arguments)


@pytest.mark.parametrize("form", ["properties as a list", "required: true", "anyOf", "$ref", "Python's names", "true"])
def test_rows_of_both_benches(form: str, tmp_path: Path) -> None:
    parameters, source = FORMS[form]
    tool = {"name": "code_of", "description": "The code of a room", "parameters": parameters}
    row = ftrl_row(
        messages=[{"role": "user", "content": f"{HEAD}\nQuestion: What is the code of room 12?"}],
        tools=[{"type": "function", "function": tool}],
        codes={"code_of": source},
        unsolved_set={"code_of": ["K84"]},
        answer="K84",
    )
    ftrl = ftrl_bench(write(tmp_path / "test.jsonl", [row]))
    asked = "What is the code of room 12?"
    hop = {"id": 1, "question": asked, "answer": "K84", "sub_task": {asked: "K84"}, "tools": {asked: tool}}
    (tmp_path / "ToolHop.json").write_text(json.dumps([hop | {"functions": [source]}]), encoding="utf-8")
    toolhop = load_bench(composed("bench=toolhop", f"bench.path={tmp_path / 'ToolHop.json'}").bench)
    for bench in (ftrl, toolhop):
        (task,) = bench.tasks("test")
        trace = bench.expert_trace(task)
        assert trace is not None
        assert trace.calls == [{"name": "code_of", "arguments": {"room": 12}}]
        shown = task.tools[0]["function"]["parameters"]
        assert shown == (of(INTEGER) if form in ("properties as a list", "required: true") else parameters)


def test_the_shared_cases(shared: Path) -> None:
    for file in sorted((shared / "cases/schema").glob("*.jsonl")):
        bench = ftrl_bench(file, train_on_test=True)
        (task,) = [task for split in ("train", "test") for task in bench.tasks(split)]
        trace = bench.expert_trace(task)
        assert trace is not None and trace.calls == [{"name": "code_of", "arguments": {"room": 12}}], file.name


def room(parameters: Any) -> Any:
    return plain_parameters(parameters)["properties"]["room"]


def test_what_the_forms_say() -> None:
    for form in (
        "plain",
        "required: true",
        "properties as a list",
        "properties as a list of objects",
        "Python's names",
    ):
        assert plain_parameters(FORMS[form][0]) == of(INTEGER), form
    assert plain_parameters(FORMS["properties without their frame"][0]) == {"properties": {"room": INTEGER}}
    assert plain_parameters(FORMS["required: true of the property"][0])["required"] == ["room"]
    assert room(FORMS["$ref beside words"][0]) == {"type": "integer", "description": "x"}
    assert room(FORMS["anyOf"][0])["type"] == room(FORMS["a type list, null first"][0])["type"] == ["integer", "null"]
    assert room(FORMS["consts"][0]) == {"type": "integer", "enum": [11, 12]}
    assert room(FORMS["enum or another"][0]) == {"type": "integer", "examples": [3]}
    assert room(FORMS["Literal"][0]) == {"type": "integer", "enum": [11, 12]}
    assert room(FORMS["nullable"][0])["type"] == ["integer", "null"]
    assert room(FORMS["allOf"][0]) == {"type": "integer", "minimum": 1}
    assert room(of({"allOf": [{"type": "number"}, {"type": ["integer", "string"]}]}))["type"] == "integer"
    assert room(of({"type": "dict[str, list[int]]"})) == {"type": "object"}
    assert room(of({"type": "list[Optional[str]]"}))["items"]["type"] == ["string", "null"]
    assert "room" not in plain_parameters(of(False))["properties"]
    assert plain_parameters(None) == plain_parameters("x") == {} or plain_parameters("x") == {"description": "x"}


def test_a_recursive_schema_ends() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/Node"}, "other": {"$ref": "#/$defs/Node"}}}
    read = plain_parameters(of({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}}))
    assert read["properties"]["room"] == {"type": "object", "properties": {"child": {}, "other": {}}}
    branching = {f"N{i}": {"anyOf": [{"$ref": f"#/$defs/N{i + 1}"}] * 8} for i in range(11)}
    assert plain_parameters(of({"$ref": "#/$defs/N0"}, **{"$defs": branching}))


def test_bounds() -> None:
    assert allows({"type": "integer", "minimum": 3}, 3) and not allows({"minimum": 3}, 2)
    assert allows({"pattern": "^[A-Z]{2}$"}, "AB") and not allows({"pattern": "^[A-Z]{2}$"}, "ab")
    assert allows({"minimum": "three"}, 1) and allows({"not": {"type": "int"}}, 1) and allows({"pattern": "("}, "x")


def test_schemas_that_are_plain_stay_as_they_are(shared: Path) -> None:
    rows = load_rows(shared / "data/ftrl/test.jsonl")
    for row in rows:
        for tool in row.tools:
            assert row.functions[tool["function"]["name"]] == tool["function"]


KEYWORDS = [
    *("type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "$ref", "$defs", "A", "enum", "const"),
    *("prefixItems", "nullable", "default", "minimum", "pattern", "$id", "$anchor", "name", "schema", "not"),
]
WORDS = ["string", "int", "room", "#/$defs/A", "#", "list[int]"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_whatever_json_is_read(parameters: Any) -> None:
    read = plain_parameters(parameters)
    assert Reader(read).make_plain(read) == read
    check(read)


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_whatever_json_is_mined(miner: Miner, tools_sandbox: Sandbox, parameters: Any) -> None:
    text, sources = "What is the code of room 12?", {"code_of": WHOLE}
    tool = {"name": "code_of", "description": "x", "parameters": of(parameters)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_RUNS", 32)
        question = Question("t", text, "K84", [Hop(text, "K84", tool)], sources, ordered=False)
        miner.mine(question, ToolEnvironment(sources, plain_text, tools_sandbox), lambda trace: True)


def check(schema: Any) -> None:
    """The promises that the miner builds on."""
    assert isinstance(schema, dict)
    for value in schema.get("properties", {}).values():
        check(value)
    assert all(isinstance(name, str) for name in schema.get("required", []))
    assert isinstance(schema.get("enum", []), list)
    if "items" in schema:
        check(schema["items"])


def test_templates_that_iterate_over_parameters_render_every_form() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"))
    for parameters, _ in FORMS.values():
        nested = {"type": "object", "properties": {"in": parameters}, "required": ["in"]}
        for written in (parameters, nested):
            tool = {"type": "function", "function": {"name": "code_of", "description": "d", "parameters": written}}
            for template in (gptoss_chat_template, gemma4_chat_template):
                messages = [{"role": "user", "content": "x"}]
                text = tokenizer.apply_chat_template(
                    messages, tools=[make_renderable(tool)], chat_template=template, tokenize=False
                )
                assert "code_of" in text
    kept = FORMS["anyOf beside a description"][0]
    assert make_renderable({"type": "function", "function": {"parameters": kept}})["function"]["parameters"] is kept


@pytest.mark.parametrize("form", FORMS)
def test_prompts_and_parsers_take_every_form(form: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"))
    tool = {"type": "function", "function": {"name": "code_of", "description": "d", "parameters": FORMS[form][0]}}
    messages = [{"role": "user", "content": "x"}]
    text = tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False, add_generation_prompt=True)
    assert json.dumps(FORMS[form][0]) in text
    tokenizer.response_template = qwen3_5_template
    said = "<tool_call>\n<function=code_of>\n<parameter=room>\n12\n</parameter>\n</function>\n</tool_call><|im_end|>"
    ids, context = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (said, text))
    read = TokenReader(tokenizer).read(None, ids, context, [tool])  # type: ignore[arg-type]
    (call,) = read["tool_calls"]
    assert call["function"]["name"] == "code_of"
