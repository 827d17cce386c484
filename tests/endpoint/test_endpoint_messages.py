"""What a server's answers say, and what goes back: valid for strict servers, and the text that was sampled."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agentrl.endpoint.answer import Answer, NoAnswer, read_answer, refusal_words
from agentrl.endpoint.messages import Dialogue, read_arguments, read_message
from tests.support.chat_server import call, completion, said

TINY = Path(str(files("agentrl.tiny") / "tiny"))
ERROR = {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "Too Many Requests"}}}


def answered(message: dict[str, Any], finish: Any = "stop", **more: Any) -> Answer:
    return read_answer(json.dumps(completion(message, finish, **more)))


# --- what is an answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        ("", "the answer is empty", None),
        ("<!doctype html><html><head><title>502\n Bad</title></head></html>", r"a web page \(502 Bad\)", None),
        ('{"id": "x", "choices": [', "broken JSON: .*choices", None),
        ('data: {"choices": []}\n\ndata: [DONE]\n', "streams its answer", None),
        ("[1, 2]", r"not a JSON object: \[1, 2\]", None),
        ("[" * 100_000, "broken JSON", None),
        ({"choices": None, **ERROR}, r"Provider returned error \(Too Many Requests\)", 429),
        ({"object": "error", "message": "out of memory", "code": 500}, "out of memory", 500),
        ({"error": {"message": "slow down", "code": "429"}}, "slow down", 429),
        ({"error": {"message": "odd", "code": True, "status": "429 or so"}}, "odd", None),
        ({"error": "model is loading"}, "model is loading", None),
        ({"detail": "Not here"}, "Not here", None),
        (completion(None), "has no message", None),
        (completion({}) | {"choices": []}, "has no choices", None),
        (completion({}) | {"choices": {"message": "x"}}, "has no choices", None),
        (completion({}) | {"choices": [{"text": "legacy"}]}, "has no message: .*legacy", None),
        (completion({}) | {"choices": [{"error": {"message": "upstream died", "code": 502}}]}, "upstream died", 502),
        (completion(said(None, refusal="I can't"), "content_filter"), "content_filter.*I can't", None),
        (completion(said(None), "abort"), "abort", None),
        (completion(said({"text": "x"})), "content is not text", None),
        (completion(said([{"type": "image_url", "image_url": "x"}])), "part of type image_url", None),
        (completion(said("", {"type": "custom", "custom": {"name": "add"}})), "names no function: .*custom", None),
        (completion(said("") | {"tool_calls": "add(1)"}), "tool_calls is not a list", None),
        (completion(said("", "add(1)")), "names no function", None),
        (completion(said("", None)), "names no function: null", None),
    ],
)
def test_what_is_no_completion_says_so_in_the_servers_words(body: Any, words: str, status: int | None) -> None:
    with pytest.raises(NoAnswer, match=words) as told:
        read_answer(body if isinstance(body, str) else json.dumps(body))
    assert told.value.status == status and len(str(told.value)) < 400 and "\n" not in str(told.value)


def test_answers_of_many_servers_are_read() -> None:
    assert answered(said(None)).content == "" and answered({}).content == ""
    assert [answered(said("x"), finish).finish for finish in (None, 7, "eos", "length")] == [
        "stop",
        "stop",
        "eos",
        "length",
    ]
    assert read_answer("\ufeff" + json.dumps(completion(said("x")))).content == "x"
    parts = [{"type": "text", "text": "a"}, "b", {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    assert (answered(said(parts)).content, answered(said(parts)).reasoning) == ("ab", "hm")
    assert answered(said(None, refusal="I will not")).content == "I will not"
    for key in ("reasoning_content", "reasoning"):
        thought = answered(said("x", **{key: "\nhm\n"}))
        assert (thought.reasoning, thought.reasoning_key) == ("\nhm\n", key)
    assert answered(said("x", reasoning_content=None, reasoning={"a": 1})).reasoning == ""
    old = answered(said(None, function_call={"name": "add", "arguments": "{}"}), "function_call")
    assert old.calls == [("add", "{}")]
    bare = answered(said(None, {"function": {"name": "add"}}, {"function": {"name": None, "arguments": 5}}))
    assert bare.calls == [("add", None), ("", 5)]  # neither id nor type nor arguments


@pytest.mark.parametrize("usage", [None, "many", [], {"prompt_tokens": "12", "completion_tokens": -3}, {"total": 1.5}])
def test_counts_that_are_no_counts_are_no_counts(usage: Any) -> None:
    assert answered(said("x"), usage=usage).usage == {}
    assert answered(said("x")).usage == {"prompt_tokens": 50, "completion_tokens": 9}


def test_half_surrogate_pairs_are_replaced_wherever_they_stand() -> None:
    answer = answered(said("half \ud83d", call("ad\ud83d", '{"a": "\\ud83d"}'), reasoning="\udc00"))
    message = read_message(answer)
    json.dumps(message, ensure_ascii=False).encode()
    assert message["content"] == "half \ufffd" and message["reasoning_content"] == "\ufffd"
    assert message["tool_calls"][0]["function"] == {"name": "ad\ufffd", "arguments": {"a": "\ufffd"}}
    assert answered(said("\ud83d\ude00")).content == "\U0001f600"  # two halves that belong together


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "too long", "type": "x"}}', "too long"),
        ('{"object": "error", "message": "bad request"}', "bad request"),
        ('{"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs"}]}', "body.top_k: Extra inputs"),
        ('{"error": {"code": 7}}', '{"code": 7}'),
        ('{"odd": 1}', '{"odd": 1}'),
        ("<html><h1>403 Forbidden</h1></html>", "the answer is a web page (403 Forbidden)"),
        ("", "the answer is empty"),
        ("Too many\nrequests", "Too many requests"),
        ('{"half": ', 'the answer is broken JSON: {"half":'),
    ],
)
def test_the_words_of_a_refusal(body: str, words: str) -> None:
    assert refusal_words(body) == words


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "", "  \n", "null", '"null"', "{}", {}, '""'])
def test_a_call_without_arguments_has_none(nothing: Any) -> None:
    assert read_arguments(nothing) == {}


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        (json.dumps('{"a": 1}'), {"a": 1}),
        (json.dumps(json.dumps('{"a": 1}')), {"a": 1}),
        ("[1, 2]", [1, 2]),
        ([1, 2], [1, 2]),
        ("17", "17"),
        (17, 17),
        ('{"a": 1, "b', '{"a": 1, "b'),
        ("words", "words"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_are_read_and_what_is_no_object_stays(sent: Any, read: Any) -> None:
    assert read_arguments(sent) == read


# --- what goes back ---------------------------------------------------------------------------------------------------


def test_calls_are_read_wherever_the_server_left_them() -> None:
    parsed = read_message(answered(said("I look.\n", call("find", '{"x": 1}'))))
    unparsed = answered(said('I look.\n<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'))
    assert parsed == read_message(unparsed)
    assert parsed["tool_calls"][0]["function"] == {"name": "find", "arguments": {"x": 1}}
    assert "tool_calls" not in read_message(answered(said("done")))


@pytest.mark.parametrize("history", ["structured", "text"])
def test_results_name_the_call_they_answer(history: str) -> None:
    dialogue = Dialogue(history)
    dialogue.add_answer(answered(said("two", call("a", '{"x": "\u00e9"}', id="same"), call("b", "", id="same"))))
    dialogue.add_observations([{"role": "tool", "name": name, "content": name} for name in "ab"])
    first, *results = dialogue.sent
    ids = [result["tool_call_id"] for result in results]
    assert len(set(ids)) == 2 and [result["content"] for result in results] == ["a", "b"]
    if history == "text":
        assert "tool_calls" not in first
        assert first["content"].startswith(
            'two\n<tool_call>\n{"name": "a", "arguments": {"x": "\u00e9"}}\n</tool_call>\n'
        )
    else:
        assert [made["id"] for made in first["tool_calls"]] == ids
        assert first["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"x": "\u00e9"}'}


@pytest.mark.parametrize(
    "written", ["", None, "null", '{"a": 1, "b', "[1, 2]", [1, 2], 17, "words", {"a": float("nan")}]
)
def test_what_a_model_wrote_badly_goes_back_as_an_object(written: Any) -> None:
    dialogue = Dialogue("structured")
    dialogue.add_answer(answered(said("", call(None, written))))
    (back,) = dialogue.sent[0]["tool_calls"]
    strict = json.loads(back["function"]["arguments"], parse_constant=lambda name: pytest.fail(name))
    assert isinstance(strict, dict) and back["function"]["name"]
    assert strict == {} or str(written)[:4] in str(strict) or "NaN" in str(strict)


@pytest.mark.parametrize(
    "sampled",
    [
        "I look.\n{call}",
        "I look.\n\n{call}",
        "\n{call}",
        "a \n{call}\n{call}",
        "<think>\nhm\n</think>\nI look.\n{call}",
        "<think>\nhm\n\nso\n</think>\n\n{call}",
        "<think>\nhm\n</think>\nanswer",
        "answer\n",
    ],
)
@pytest.mark.parametrize("parser", ["calls and reasoning", "calls", "none"])
@pytest.mark.parametrize("history", ["structured", "text"])
def test_what_goes_back_renders_to_the_text_that_was_sampled(sampled: str, parser: str, history: str) -> None:
    """A server cuts a turn as vLLM's hermes and qwen3 parsers do; the tiny model's template puts it together again."""
    block = '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'
    text = sampled.replace("{call}", block)
    message = said(text)
    if parser != "none" and block in text:
        message = said(text[: text.index("<tool_call>")] or None, *[call("find", '{"x": 1}')] * text.count(block))
    if parser == "calls and reasoning" and "<think>" in text:
        thought, _, rest = message["content"].removeprefix("<think>").partition("</think>")
        message |= {"content": rest, "reasoning_content": thought}
    dialogue = Dialogue(history)
    dialogue.add_answer(answered(message))
    (back,) = dialogue.sent
    if "tool_calls" in back:  # as vLLM hands them to the template
        functions = [made["function"] for made in back["tool_calls"]]
        back = back | {"tool_calls": [{"function": f | {"arguments": json.loads(f["arguments"])}} for f in functions]}
    template = AutoTokenizer.from_pretrained(TINY)
    rendered = template.apply_chat_template([{"role": "user", "content": "?"}, back], tokenize=False)
    turn = rendered.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n")
    if sampled.startswith("<think>\nhm\n\nso"):  # this template writes one newline after a think block, Qwen3's two
        turn, text = turn.replace("</think>\n\n", "</think>\n"), text.replace("</think>\n\n", "</think>\n")
    assert turn == text
