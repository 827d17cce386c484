"""Calls as models of other families write them, beside what TRL's parser for their template expects."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import trl.chat_template_utils as trl
from transformers import AutoTokenizer

from agentrl.chat.families import family_reader, read_lfm2, read_llama
from agentrl.chat.reading import TokenReader
from agentrl.chat.transcripts import parse_text
from agentrl.models.places import checkpoint_path

CAPITAL, COUNTRY = ("capital", {"country": "Norland"}), '{"country": "Norland"}}'
TWO = [("a", {}), ("b", {"x": {"y": "}"}})]
QUESTION = {"q": "What's new", "n": 3, "deep": True, "more": None}


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "capital", "parameters": {"country": "Norland"}}', "", [CAPITAL]),
        ('<|python_tag|>{"type": "function", "name": "capital", "parameters": ' + COUNTRY, "", [CAPITAL]),
        ('<|python_tag|>{"type": "function", "function": "capital", "parameters": ' + COUNTRY, "", [CAPITAL]),
        ('I look it up.\n{"name": "capital", "parameters": {"country": "Norland"}}', "I look it up.", [CAPITAL]),
        ('{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": {"y": "}"}}}', "", TWO),
    ],
)
def test_llama(text: str, content: str, calls: Any) -> None:
    assert read_llama(text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    ["", "no call", '{"name": "a"}', '{"name": "a", "parameters": {}} and so on', '{"a": 1}', '{"name": "a", "par'],
)
def test_what_is_no_call_of_llama(text: str) -> None:
    assert read_llama(text) is None


@pytest.mark.parametrize(
    ("inner", "calls"),
    [
        ("calc(expr='(1+2)*3')", [("calc", {"expr": "(1+2)*3"})]),
        (r"search(q='What\'s new', n=3, deep=True, more=null)", [("search", QUESTION)]),
        ('a(x=[1, "b"], y={"k": [true]}), b()', [("a", {"x": [1, "b"], "y": {"k": [True]}}), ("b", {})]),
    ],
)
def test_lfm2(inner: str, calls: Any) -> None:
    assert read_lfm2(f"Let me see.<|tool_call_start|>[{inner}]<|tool_call_end|>") == ("Let me see.", calls)


@pytest.mark.parametrize(
    "inner", ["f(x)", "f(a=g())", "f(a=b'x')", "f(**k)", "import os", "f(a=", "1", "f(a=" + "(" * 500]
)
def test_what_is_no_call_of_lfm2(inner: str) -> None:
    assert read_lfm2(f"<|tool_call_start|>[{inner}]<|tool_call_end|>") is None


def test_many_calls_before_other_words_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()

    class Counting(json.JSONDecoder):
        def raw_decode(self, text: str, place: int = 0) -> Any:
            read.append(place)
            return super().raw_decode(text, place)

    monkeypatch.setattr(json, "JSONDecoder", Counting)
    assert read_llama('{"name": "a", "parameters": {}}\n' * 100 + "x") is None
    assert len(read) == 101  # 5,150 if each line began anew


def test_readers_are_chosen_by_trls_parser() -> None:
    assert family_reader(trl.llama3_template) is read_llama
    assert family_reader(trl.lfm2_2_5_template) is read_lfm2
    assert family_reader(trl.qwen3_template) is None and family_reader({}) is None


def test_a_call_with_llamas_tag_and_end_of_message_is_read_from_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"))
    tokenizer.response_template = trl.llama3_template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>", "<|eom_id|>"]})
    text = '<|python_tag|>{"type": "function", "name": "capital", "parameters": {"country": "Norland"}}<|eom_id|>'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tool = {"type": "function", "function": {"name": "capital", "parameters": {"type": "dict", "properties": []}}}
    read = TokenReader(tokenizer).read(SimpleNamespace(read=parse_text), ids, [], [tool])  # type: ignore[arg-type]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in read["tool_calls"]] == [CAPITAL]
    assert read["content"] == ""
