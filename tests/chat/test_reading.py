"""One reader per bench: a text makes the same calls, verdict and reward in process, at an endpoint and scored."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.chat_template_utils import llama3_2_chat_template, llama3_template

from agentrl.benches import load_bench
from agentrl.benches.bfcl.calls import read_turn as read_bfcl
from agentrl.chat.reading import TokenReader, read_turn
from agentrl.chat.transcripts import parse_text, parse_toolhop
from agentrl.core.engine import Decoding, Episode
from agentrl.core.trajectory import Component
from agentrl.endpoint.answer import read_answer
from agentrl.models.loading import checkpoint_path
from agentrl.rewards.turns import turn_rewards
from agentrl.rollout.endpoint import EndpointEngine
from agentrl.trainers.samplers import skip_parsing
from tests.benches.test_ftrl import bench as ftrl_bench
from tests.benches.test_ftrl import row as ftrl_row
from tests.benches.test_ftrl import write
from tests.support import toolhop_rows
from tests.support.bfcl_play import bench_of, needs_bfcl
from tests.support.helpers import composed, make_trainer, say, small

GOOD = '{"name": "capital", "arguments": {"country": "Norland"}}'
CALL = [("capital", {"country": "Norland"})]
REFERENCES = [{"name": "capital", "arguments": {"country": "Norland"}}]


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


# text, and the calls that FTRL's, ToolHop's and BFCL's official code reads in it
CASES: dict[str, tuple[str, list[Any], list[Any], list[Any]]] = {
    "as templates write it": (f"I ask.\n{block(GOOD)}", CALL, CALL, CALL),
    "arguments as JSON text": (
        block('{"name": "capital", "arguments": "{\\"country\\": \\"Norland\\"}"}'),
        CALL,
        CALL,
        CALL,
    ),
    "arguments as text twice": (
        block('{"name": "capital", "arguments": "\\"{}\\""}'),
        [("capital", '"{}"')],
        [("capital", '"{}"')],
        [],
    ),
    "a good call beside a malformed one": (f"{block(GOOD)}\n{block('{oops')}", CALL, CALL, CALL),
    "a malformed call before a good one": (f"{block('{oops')}\n{block(GOOD)}", CALL, CALL, CALL),
    "one call lacks arguments": (
        f"{block(GOOD)}\n{block(chr(123) + chr(34) + 'name' + chr(34) + ': 1}')}",
        CALL,
        CALL,
        [],
    ),
    "an unclosed last block": (f"<tool_call>\n{GOOD}", CALL, CALL, []),
    "text between blocks": (f"{block(GOOD)}\nand\n{block(GOOD)}", CALL, CALL * 2, CALL * 2),
    "a call in a think block": (f"<think>\n{block(GOOD)}\n</think>\nDone.", CALL, CALL, []),
    "a call after a think block": (f"<think>\nHm.\n</think>\n{block(GOOD)}", CALL, CALL, CALL),
    "a name that is a number": (block('{"name": 7, "arguments": {}}'), [("7", {})], [("7", {})], [("7", {})]),
    "no name": (block('{"name": "", "arguments": {}}'), [], [("", {})], [("", {})]),
    "arguments null": (block('{"name": "capital", "arguments": null}'), [], [], []),
    "arguments a number": (block('{"name": "capital", "arguments": 3}'), [], [], []),
    "arguments a list": (block('{"name": "capital", "arguments": ["x"]}'), [], [("capital", '""')], []),
    "a list in JSON text": (
        block('{"name": "capital", "arguments": "[1]"}'),
        [("capital", [1])],
        [("capital", [1])],
        [],
    ),
    "no arguments": (block('{"name": "capital"}'), [], [], []),
    "keys given twice": (
        block('{"name": "x", "name": "capital", "arguments": {"country": "a", "country": "Norland"}}'),
        CALL,
        CALL,
        CALL,
    ),
    "single quotes": (block(GOOD.replace('"', "'")), [], CALL, []),
    "a trailing comma": (block('{"name": "capital", "arguments": {"country": "Norland",},}'), [], CALL, []),
    "a brace too few": (block(GOOD[:-1]), [], CALL, []),
    "a tag within a tag": (f"<tool_call>\n<tool_call>\n{GOOD}\n</tool_call>\n</tool_call>", [], CALL, []),
    "a name with blanks": (block(GOOD.replace("capital", " capital ")), *([[(" capital ", CALL[0][1])]] * 3)),
    "a list of calls": (block(f"[{GOOD}]"), [], [], []),
    "no newlines in the tags": (f"<tool_call>{GOOD}</tool_call>", CALL, CALL, []),
    "half a surrogate pair": (
        block('{"name": "capital\\ud83d", "arguments": {"country": "\\udc00"}}'),
        *([[("capital\ufffd", {"country": "\ufffd"})]] * 3),
    ),
    "nested too deeply": (block('{"name": "capital", "arguments": ' + '{"a":' * 1100), [], [], []),
    "nested deeply": (block('{"name": "capital", "arguments": ' + '{"a":' * 300 + "1" + "}" * 301), [], [], []),
    "no call at all": ("<answer>1,200</answer>", [], [], []),
}


@pytest.mark.parametrize("case", CASES)
def test_every_official_reader(case: str) -> None:
    text, *wanted = CASES[case]
    assert [read(text)[1] for read in (parse_text, parse_toolhop, read_bfcl)] == wanted


def test_json_that_is_no_number_is_an_argument() -> None:
    for read in (parse_text, read_bfcl):
        ((_, arguments),) = read(block('{"name": "capital", "arguments": {"country": NaN}}'))[1]
        assert arguments["country"] != arguments["country"]


def test_every_recorded_reading(shared: Path) -> None:
    """The texts of ToolHop's golden episodes, as either official parser read them."""
    readers = {"toolhop": parse_toolhop, "ftrl": parse_text}
    compared = 0
    for line in (shared / "parity/toolhop.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for loop, read in readers.items():
            for message in (record[loop] or {}).get("messages") or []:
                if message["role"] == "assistant":
                    content, calls = read(message["content"])
                    made = [(name, json.loads(a) if isinstance(a, str) else a) for name, a in calls]
                    wanted = [(call["name"], call["arguments"]) for call in message["parsed_calls"]]
                    assert (content, made) == (message["parsed_content"] or "", wanted), record["case"]
                    compared += 1
    assert compared > 5000


# -- three ways --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    limits = ("rollout.max_completion_tokens=6000", "rollout.max_turn_tokens=null", "rollout.max_turns=4")
    return make_trainer(small("algo=grpo", *limits), tmp_path_factory.mktemp("out"))


def in_process(trainer: Any, bench: Any, task: Any, texts: list[str]) -> Any:
    tokenizer = trainer.processing_class

    def speak(request: Any, turn: int) -> list[int]:
        return [*tokenizer(texts[turn], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    say(trainer, speak)
    return trainer.engine.rollout([Episode(task, bench.environment(task))])[0]


@cache
def endpoint_engine() -> EndpointEngine:
    config = composed("algo=eval", "algo.endpoint.base_url=http://localhost:1/v1", "rollout.max_turns=4")
    config.rollout.max_completion_tokens, config.rollout.max_turn_tokens = 6000, None
    return EndpointEngine(config)


@cache
def reward_of(name: str) -> Any:
    return composed(f"reward={name}").reward


def at_endpoint(bench: Any, task: Any, texts: list[str]) -> Any:
    engine, left = endpoint_engine(), list(texts)

    def complete(*_: Any) -> Any:
        message = {"role": "assistant", "content": left.pop(0)}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return read_answer(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}))

    engine._client = SimpleNamespace(complete=complete)  # type: ignore[assignment]
    return engine.rollout([Episode(task, bench.environment(task))], Decoding(0.0))[0]


def transcript(trajectory: Any, texts: list[str], **names: Any) -> dict[str, Any]:
    """The episode as `agentrl score` takes it: raw texts, outputs, what the user said."""
    said = iter(texts)
    messages = [
        {"role": message["role"], "content": next(said) if message["role"] == "assistant" else message["content"]}
        for message in trajectory.messages
    ]
    return names | {"messages": messages}


def compare(trainer: Any, bench: Any, task: Any, texts: list[str], rewards: bool = True, **names: Any) -> Any:
    """Play both ways and compare everything; the trajectory and, where the bench scores transcripts, its metrics."""
    ours, theirs = in_process(trainer, bench, task, texts), at_endpoint(bench, task, texts)
    assert ours.messages == theirs.messages
    assert ours.calls == theirs.calls
    assert bench.score(task, ours) == bench.score(task, theirs)
    for reward in ("matching", "ftrl", "toolrl", "answer") if rewards else ():
        earned = [turn_rewards(each, REFERENCES, task.answer, reward_of(reward), task.golds) for each in (ours, theirs)]
        assert earned[0] == earned[1]
    if names:
        for record in (transcript(ours, texts, **names), names | {"messages": ours.messages}):
            metrics, reason = bench.score_transcript(record)
            verdict = bench.score(task, ours).metrics
            assert metrics, reason
            assert {k: v for k, v in metrics.items() if k in verdict and v is not None} == {
                k: v for k, v in verdict.items() if k in metrics
            }, record
    return ours


@pytest.fixture(scope="module")
def ftrl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    loaded = ftrl_bench(write(tmp_path_factory.mktemp("ftrl") / "test.jsonl", [ftrl_row()]))
    return loaded, loaded.tasks("test")[0]


def test_a_call_in_a_turn_that_its_own_budget_cut_is_made_at_an_endpoint_too(ftrl: tuple[Any, Any]) -> None:
    bench, task = ftrl
    for limit, made in ((64, ["capital"]), (None, [])):  # None: the episode's budget cut the turn, and ends it
        engine = endpoint_engine()
        engine._rollout.max_turn_tokens = limit
        left = [(CASES["an unclosed last block"][0], "length"), ("Done.", "stop")]

        def complete(*_: Any, left: list[tuple[str, str]] = left) -> Any:
            content, finish = left.pop(0)
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
            return read_answer(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}))

        engine._client = SimpleNamespace(complete=complete)  # type: ignore[assignment]
        played = engine.rollout([Episode(task, bench.environment(task))], Decoding(0.0))[0]
        engine._rollout.max_turn_tokens = None
        assert [one.name for one in played.calls] == made and played.truncated == (not made)


@pytest.fixture(scope="module")
def toolhop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    file = tmp_path_factory.mktemp("toolhop") / "ToolHop.json"
    file.write_text(json.dumps(toolhop_rows.rows()), encoding="utf-8")
    loaded = {
        rule: load_bench(composed("bench=toolhop", f"bench.path={file}", f"bench.rule={rule}").bench)
        for rule in ("toolhop", "ftrl")
    }
    return {rule: (bench, bench._task(bench._all_rows()[0])) for rule, bench in loaded.items()}


@pytest.mark.parametrize("case", CASES)
def test_ftrl_three_ways(case: str, trainer: Any, ftrl: tuple[Any, Any]) -> None:
    bench, task = ftrl
    text, calls, *_ = CASES[case]
    people = block('{"name": "people", "arguments": {"city": "Brondal"}}')
    played = compare(trainer, bench, task, [text, f"So.\n{people}", "<answer>1,200</answer>"], row=0)
    assert [call.name for call in played.calls[: len(calls)]] == [name for name, _ in calls]
    solved = CALL[0] in calls
    made = len(calls) + bool(calls)
    assert bench.score(task, played).metrics["solve_f1"] == pytest.approx(2 * (solved + bool(calls)) / (made + 2))


def test_the_reward_is_that_of_the_official_step(trainer: Any, ftrl: tuple[Any, Any]) -> None:
    """A good call beside a malformed one: one of two sub-answers by one call, 2 * 1 / (1 + 1)."""
    bench, task = ftrl
    played = compare(trainer, bench, task, [CASES["a good call beside a malformed one"][0], "Done."], row=0)
    reward = reward_of("ftrl")
    assert turn_rewards(played, [], task.answer, reward, task.golds) == [1.0, 0.0]
    stray = compare(trainer, bench, task, [block("{oops")], row=0)
    assert turn_rewards(stray, [], task.answer, reward, task.golds) == [-0.3]


@pytest.mark.parametrize("rule", ["toolhop", "ftrl", "strict"])
def test_toolhop_without_tools_judges_a_text_as_it_stands(rule: str, tmp_path: Path) -> None:
    file = tmp_path / "ToolHop.json"
    file.write_text(json.dumps(toolhop_rows.rows()), encoding="utf-8")
    keys = ("bench=toolhop", f"bench.path={file}", f"bench.rule={rule}", "bench.scenario=direct")
    bench: Any = load_bench(composed(*keys).bench)
    task = bench.tasks("test")[0]
    for text in [CASES[case][0] + end for case in CASES for end in ("", f"<answer>{task.answer}</answer>")]:
        played = at_endpoint(bench, task, [text])
        assert played.final_text == text and not played.calls
        metrics, _ = bench.score_transcript({"id": task.id, "messages": [{"role": "assistant", "content": text}]})
        assert metrics["answer_correct"] == bench.score(task, played).metrics.get("answer_correct")


@pytest.mark.parametrize("rule", ["toolhop", "ftrl"])
@pytest.mark.parametrize("case", CASES)
def test_toolhop_three_ways(case: str, rule: str, trainer: Any, toolhop: dict[str, tuple[Any, Any]]) -> None:
    bench, task = toolhop[rule]
    text = CASES[case][0].replace("capital", "mayor_of").replace("country", "city").replace("Norland", "Brondal")
    played = compare(trainer, bench, task, [text, "<think>18?</think>It is 18.", "x"], row=0)
    made = CASES[case][2 if rule == "toolhop" else 1]
    assert [call.name for call in played.calls] == [name.replace("capital", "mayor_of") for name, _ in made]


@pytest.mark.parametrize("case", CASES)
def test_minihop_two_ways(case: str, trainer: Any) -> None:
    task = trainer.tasks[0]
    first = trainer.bench.expert_trace(task).turns[0].calls[0]
    text = CASES[case][0].replace("capital", first["name"])
    for key, value in first["arguments"].items():
        text = text.replace("country", key).replace("Norland", value)
    compare(trainer, trainer.bench, task, [text, f"<answer>{task.answer}</answer>", "x"])


@pytest.fixture(scope="module")
def bfcl() -> tuple[Any, Any]:
    bench = bench_of("bench.categories=[multi_turn_base]")
    return bench, next(t for split in ("test", "train") for t in bench.tasks(split) if t.id == "multi_turn_base_1")


@needs_bfcl
@pytest.mark.parametrize("case", CASES)
def test_bfcl_three_ways(case: str, trainer: Any, bfcl: tuple[Any, Any]) -> None:
    bench, task = bfcl
    name, arguments = "cd", {"folder": "alex"}
    text = CASES[case][0].replace("capital", name).replace("country", "folder").replace("Norland", "alex")
    texts = [text, "Done.", "And done.", "Really.", "Yes.", "x"]
    played = compare(trainer, bench, task, texts, id=task.id)
    wanted = [(n.replace("capital", name), arguments if a == CALL[0][1] else a) for n, a in CASES[case][3]]
    made = [(call.name, call.arguments) for call in played.calls if call.turn == 0]
    assert [n for n, _ in made] == [n for n, _ in wanted]


FRAGMENTS = ("<tool_call>", "</tool_call>", "\n", " ", GOOD, "<think>", "</think>", "é\u2028", "{", "}", '"', "\\ud800")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text("ab{}[]\",:'\\<>_/0\n", max_size=8), max_size=14))
def test_mutated_texts_read_alike_and_never_raise(parts: list[str]) -> None:
    text = "".join(parts)
    tokenizer = tiny()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    for read in (parse_text, parse_toolhop, read_bfcl):
        environment = SimpleNamespace(read=read, call=None)
        sampled = TokenReader(tokenizer).read(environment, ids, [], [{}])  # type: ignore[arg-type]
        assert sampled == read_turn(text, environment)  # type: ignore[arg-type]
        content, calls = read(text)
        made = [call["function"] for call in sampled.get("tool_calls", [])]
        assert sampled["content"] == content
        assert repr([(call["name"], call["arguments"]) for call in made]) == repr(calls)
        json.dumps(sampled, ensure_ascii=False).encode("utf-8")


def tiny() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"))


def test_a_tag_that_a_tokenizer_calls_special_is_still_read() -> None:
    tokenizer = tiny()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    ids = tokenizer(block(GOOD), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert TokenReader(tokenizer).text(ids) == block(GOOD)


def test_another_familys_calls_are_read_by_its_own_parser() -> None:
    tokenizer = tiny()
    tokenizer.chat_template, tokenizer.response_template = llama3_2_chat_template, llama3_template
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    tool = {"type": "function", "function": {"name": "capital", "parameters": {"type": "dict", "properties": []}}}
    head = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    call = '{"name": "capital", "parameters": {"country": "Norland"}}<|eot_id|>'
    ids, context = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (call, head))
    reader = TokenReader(tokenizer)
    with skip_parsing(tokenizer):
        assert tokenizer.response_template is None
        read = reader.read(SimpleNamespace(read=parse_text), ids, context, [tool])  # type: ignore[arg-type]
    assert tokenizer.response_template is not None
    assert [call["function"] for call in read["tool_calls"]] == [
        {"name": "capital", "arguments": {"country": "Norland"}}
    ]


def test_a_call_in_a_think_block_has_the_component_of_a_call(trainer: Any, ftrl: tuple[Any, Any]) -> None:
    played = in_process(trainer, *ftrl, [CASES["a call in a think block"][0], "Done."])
    spelled = [i for i, c in zip(played.completion_ids, played.component, strict=True) if c == Component.TOOL_CALL]
    assert GOOD in trainer.processing_class.decode(spelled)
