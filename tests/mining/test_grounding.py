"""Where an argument may come from, and the values that the texts suggest."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from agentrl.mining.examples import example_calls
from agentrl.mining.grounding import Knowledge, find_dates, find_words, is_offered
from agentrl.mining.instrument import flows, instrument
from agentrl.mining.mutations import Mutator, may_be_same
from agentrl.mining.probe import probe
from agentrl.mining.values import convert, entities, fit_values, remove_at, replace_at, schema_at, suggest_values

TEXT = "In May 2021, Ann-Lee O'Neil had three cats, 1,250 fish and the second prize, on 2 days of the Serbian election"


@pytest.fixture
def known() -> Knowledge:
    knowledge = Knowledge()
    knowledge.add("question", TEXT)
    knowledge.add("step 1", '{"person": "José Marn", "born": "17 March 1962"}')
    return knowledge


def test_what_the_texts_say(known: Knowledge) -> None:
    said = ["ann lee", "O'Neil", ["cats", 3], {"any": "fish"}, 2, 1250, 2021.0, 5, "what is the cat of Ann", "Serbia"]
    for value in said:
        assert known.source(value) == "question", value
    for value in ("Jose Marn", "1962-03-17", "March 17, 1962", 1962):
        assert known.source(value) in ("step 1", "several texts"), value
    assert known.source("Ann Marn") == "several texts"
    for value in ("Bob", ["cats", 4], {"any": "dogs"}, 125, 2.5, "1962-03-18", "Ann Smith", "prizefighter"):
        assert known.source(value) is None, value


def test_the_ends_of_a_stated_period_follow_from_it(known: Knowledge) -> None:
    for value in ("2021-05-01", "2021-05-31", "2021-01-01", "2021-12-31", "2021-05"):
        assert known.source(value) == "several texts", value
    for value in ("2021-05-02", "2021-06-01", "2021-13-02"):
        assert known.source(value) is None, value
    assert known.source("Ann", {"type": "string", "format": "date"}) is None  # a name is no day


def test_what_the_schema_offers(known: Knowledge) -> None:
    schema = {"type": "string", "enum": ["metric", "imperial"], "description": "Such as 'old style'."}
    assert [known.source(v, schema) for v in ("metric", "old style", "new style")] == ["schema", "schema", None]
    assert known.source("x", {"default": "x"}) == "schema" and not is_offered("cat", {"description": "a category"})
    for value in (None, True, "", [], {}):
        assert known.source(value) == "schema"
    nested = {"properties": {"a": {"enum": ["zz"]}, "b": {"type": "string"}}}
    assert known.source({"a": "zz", "b": "fish"}, nested) == "question" and known.source({"b": "zz"}, nested) is None


def test_words_and_dates() -> None:
    assert find_words(["Ann's 1,250 Téa_s"]) == {"ann", "1250", "tea", "s"}
    text = "2007-11-7, July 4, 2007, 3rd of May 1999, Aug 2001, 12/31/2020; on June 5 and 99/99/2000"
    assert set(find_dates(text)) == {
        (2007, 11, 7), (2007, 7, 4), (1999, 5, 3), (2001, 8, 0), (2020, 12, 31), (0, 6, 5),
    }  # fmt: skip


def test_values_of_texts(known: Knowledge) -> None:
    assert entities('Which film by Ann de Boer is called "the end" (1962)?') == ["Ann de Boer", "the end", "1962"]
    suggested = suggest_values(known, "How many more is 9 than 4?")
    for value in ("9", "4", "Ann-Lee O'Neil", "José Marn", "Marn", "1962-03-17", "2021-05-31", 2021, TEXT):
        assert value in suggested, value


def test_values_take_the_form_of_the_schema() -> None:
    assert convert("12", {"type": "integer"}) == [12] and convert("1.5", {"type": "integer"}) == []
    assert convert("x", {"type": "array", "items": {"type": "string"}}) == [["x"]]
    assert convert(["1", "x"], {"type": "array", "items": {"type": "integer"}}) == []
    assert convert(3, {"type": ["string", "integer"]}) == ["3", 3] and convert(None, {}) == []
    assert fit_values(["1", "1", "x"], {"type": "number"}) == [1, 1.0]
    assert fit_values([], {"type": "boolean"}) == [False, True]
    parameters = {"a": {"properties": {"b": {"items": {"type": "integer"}}}}}
    assert schema_at(parameters, ("a", "b", 0)) == {"type": "integer"} and schema_at(parameters, ("x",)) == {}
    assert replace_at({"a": {"b": [1, 2]}}, ("a", "b", 1), 3) == {"a": {"b": [1, 3]}}
    assert replace_at({}, ("a", "b"), 1) == {"a": {"b": 1}} and remove_at({"a": {"b": 1, "c": 2}}, ("a", "b")) == {
        "a": {"c": 2}
    }


def test_example_calls() -> None:
    def calls(source: str, name: str) -> list[dict[str, Any]]:
        return list(example_calls(source, ast.parse(source), name))

    source = """
def f(b, a=(1)):
    return f(b)
x = 1
f(x)
f(y)
print(f('(', a=[1, {'k': None}]))
#  f(b=2)  # -> 3
# f(...)
"""
    assert calls(source, "f") == [{"b": 1}, {"b": "(", "a": [1, {"k": None}]}, {"b": 2}]
    assert calls("f = 3", "f") == []


def test_parameters_flow_through_names_and_loops() -> None:
    tree = ast.parse("def f(a, b):\n    x = a.lower()\n    for y in x.split(): z = (y, b)\n    c = 1")
    reach = flows(tree, {"a", "b"})
    assert reach["y"] == {"a"} and reach["z"] == {"a", "b"} and "c" not in reach


SOURCE = """
import re
RECORDS = [{"name": "Ann", "of": {"kin": 3}}, {"name": "Bo", "of": {"kin": 4711}}]
def f(a, b=None, *rest):
    out = []
    for r in RECORDS:
        if r["name"] == a and 1 < len(a) <= 3 and not (b is not None and b not in ("x", "y")):
            out.append(r["of"].get("kin"))
    key = (a, b)
    if {("Bo", None): 1}.get(key): out.append(re.match("B.", a) is not None and a[0:1])
    out += [n for n in (3, 4) if n > 3 and (lambda v: v == n)(4)]
    return out if out else "none", a.startswith("B"), a[-1], rest
"""


@pytest.mark.parametrize(
    "arguments", [{"a": "Bo"}, {"a": "Ann"}, {"a": "Ann", "b": "x"}, {"a": "zz", "b": 5}, {"a": ""}]
)
def test_an_instrumented_tool_gives_what_it_gave(arguments: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    try:
        expected = str(namespace["f"](**arguments))
    except IndexError:
        expected = ""
    code, sites = instrument(SOURCE, {"a", "b"}, lambda text: False)
    outcome = probe(code, "f", "4711", [arguments])[0]
    assert outcome["output"][:1] == ([expected] if expected else [])
    assert outcome["events"] and all(0 <= event[0] < len(sites) for event in outcome["events"])


def test_events_say_what_was_compared_and_near_what() -> None:
    code, sites = instrument(SOURCE, {"a", "b"}, lambda text: "4711" in text)
    events = probe(code, "f", "4711", [{"a": "Zoe"}])[0]["events"]
    compared = [event for event in events if event[1] == "==" and event[3] == "Zoe"]
    assert [(event[2], event[4], event[5]) for event in compared] == [("Ann", False, False), ("Bo", False, True)]
    assert sites[compared[0][0]].right == {"a"}
    looked_up = next(event for event in events if event[1] == "lookup" and event[3] == [["Bo", None]])
    assert looked_up[2] == ["Zoe", None] and sites[looked_up[0]].parts == (frozenset("a"), frozenset("b"))


def test_an_endless_run_ends() -> None:
    code, _ = instrument("def f(a):\n    while a == a: pass", {"a"}, lambda text: False)
    assert probe(code, "f", "1", [{"a": 1}])[0]["output"] == []


def test_a_change_goes_where_the_value_came_from() -> None:
    parameters = {"a": {"type": "string"}, "b": {"type": "string"}, "n": {"type": "number"}}
    knowledge = Knowledge()
    knowledge.add("question", "Ann Lee met Bo in 1999 and Cy in 2004")
    mutator = Mutator(parameters, knowledge, suggest_values(knowledge, ""), grounded=True)
    code, sites = instrument(
        "def f(a, b=None, n=1):\n    return a.lower() == 'ann lee' and b == 'Bo' and n > 2000 and a == 'Dot'",
        set(parameters), lambda text: False,
    )  # fmt: skip

    def changes(arguments: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        events = probe(code, "f", "?", [arguments])[0]["events"]
        return [c for event in events if event[1] == kind for c in mutator.changes(arguments, event, sites[event[0]])]

    assert changes({"a": "Cy"}, "==")[0] == {"a": "Ann Lee"}  # as the question writes it
    assert {"a": "Ann Lee", "b": "Bo"} in changes({"a": "Ann Lee"}, "==")
    assert {"a": "Ann Lee", "b": "Bo", "n": 2004} in changes({"a": "Ann Lee", "b": "Bo"}, ">")
    assert changes({"a": "Ann Lee", "b": "Bo", "n": 2004}, "==") == []  # Dot is nowhere
    assert (
        may_be_same("Ann Lee", "ann-lee")
        and may_be_same(5, "5")
        and not may_be_same(True, 1)
        and not may_be_same(None, "")
    )
