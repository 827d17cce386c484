"""A model behind a server that misbehaves: one item fails as one item, and the next invocation tries it again."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentrl.config.schema import Config
from agentrl.core.bench import Score, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.core.stop import StopRequest
from agentrl.core.trajectory import ToolCall
from agentrl.endpoint import client
from agentrl.evaluation.evaluate import evaluate
from agentrl.evaluation.results import count_missing_items
from agentrl.rollout.endpoint import EndpointEngine
from agentrl.store.run import RunDirectory
from tests.support.chat_server import ChatServer, Reply, call, completion, said
from tests.support.helpers import composed

ADD = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
GREEDY = Decoding(0.0)


class Sums:
    """Adding two numbers with a tool."""

    name, solve_metric = "sums", "solved"

    def tasks(self, count: int = 4) -> list[Task]:
        prompts = [
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n} + {n}?"}]
            for n in range(count)
        ]
        return [Task(str(n), prompt, [ADD], str(2 * n), str(n)) for n, prompt in enumerate(prompts)]

    def environment(self, task: Task) -> Any:
        return Adder()

    def score(self, task: Task, trajectory: Any) -> Score:
        return Score({"solved": float(trajectory.final_text == task.answer)}, task.cluster)


class Adder:
    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        try:
            return ToolCall(turn, name, arguments, str(arguments["a"] + arguments["b"]))
        except (TypeError, KeyError):
            return ToolCall(turn, name, arguments, "two numbers are wanted", error=True)


def number(body: dict[str, Any]) -> int:
    """Which item is played."""
    (question,) = (message["content"] for message in body["messages"] if message["role"] == "user")
    return int(question.split()[2])


def good(body: dict[str, Any], _: int = 0) -> dict[str, Any]:
    """What a model does that can add."""
    if body["messages"][-1]["role"] == "tool":
        return completion(said(body["messages"][-1]["content"]))
    n = number(body)
    return completion(said("I add.\n", call("add", json.dumps({"a": n, "b": n}))), "tool_calls")


def refusal(status: int, words: Any, **headers: str) -> Reply:
    return Reply({"error": {"message": words}} if isinstance(words, str) else words, status, headers)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


@cache
def base_config() -> Config:
    return composed("algo=eval", "model=custom", "model.name=m", "model.path=m")


def configured(url: str, **settings: Any) -> Config:
    """An evaluation behind `url`; settings are keys of the endpoint, of decoding, or of the limits."""
    config = deepcopy(base_config())
    endpoint = config.algo.endpoint
    for key, value in {"base_url": url, "retries": 2, "batch": 3, **settings}.items():
        owner = next(part for part in (endpoint, config.eval, config.rollout) if key in vars(part))
        setattr(owner, key, value)
    return config


def play(server: ChatServer | str, path: Path, count: int = 4, **settings: Any) -> tuple[list[Any], RunDirectory]:
    """One invocation of an evaluation in the run directory `path`: the items that count, and the run."""
    config = configured(server if isinstance(server, str) else server.url, **settings)
    run = RunDirectory(path)
    run.eval_dir.mkdir(parents=True, exist_ok=True)
    run.config = lambda: config  # type: ignore[method-assign]
    bench: Any = Sums()
    console, tasks = RunConsole(Console(quiet=True)), bench.tasks(count)
    return evaluate(EndpointEngine(config), bench, tasks, config.eval, run, "after", console, StopRequest()), run


def lines(run: RunDirectory) -> dict[str, Any]:
    return {line["id"]: line for line in run.records(run.eval_dir / "after.jsonl")}


def solved(items: list[Any]) -> list[float]:
    return [item["metrics"]["solved"] for item in sorted(items, key=lambda item: int(item["id"]))]


# --- one item fails as one item ---------------------------------------------------------------------------------------


OVERFLOW = "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens."


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (refusal(400, OVERFLOW), "HTTP 400: This model's maximum context length"),
        (refusal(400, {"error": {"message": "filtered", "code": "content_filter"}}), "HTTP 400: filtered"),
        (refusal(413, "too much"), "HTTP 413: too much"),
        (refusal(422, {"detail": [{"loc": ["body"], "msg": "no"}]}), "HTTP 422: body: no"),
        (refusal(403, "your input was flagged"), "HTTP 403: your input was flagged"),
        (Reply({"error": {"message": OVERFLOW, "code": 400}}), "HTTP 400: This model's maximum"),
        (completion(said(None, refusal="no"), "content_filter"), "content_filter"),
        (completion({}) | {"choices": []}, "no choices"),
        (Reply("<html>Welcome</html>", headers={"Content-Type": "text/html"}), "web page"),
        (Reply("data: {}\n\n", headers={"Content-Type": "text/event-stream"}), "streams its answer"),
        (Reply(b"no gzip", headers={"Content-Encoding": "gzip"}), "cannot be reached"),
        (Reply(gzip.compress(b'{"choices": [')[:-9], headers={"Content-Encoding": "gzip"}), ""),
        (Reply(good({"messages": [{"role": "user", "content": "What is 1"}]}), cut=True), "cannot be reached"),
        (refusal(500, "boom"), "HTTP 500: boom, after 3 tries"),
        (refusal(429, "slow down", **{"Retry-After": "4000"}), "the server asks to wait 4000 s"),
    ],
)
@pytest.mark.parametrize("turn", [1, 2])
def test_an_item_that_the_server_does_not_play_is_missing_and_tried_again(
    what: Any, reason: str, turn: int, tmp_path: Path
) -> None:
    mended = False

    def respond(body: dict[str, Any], _: int) -> Any:
        second = body["messages"][-1]["role"] == "tool"
        return what if number(body) == 1 and second == (turn == 2) and not mended else good(body)

    with ChatServer(respond) as server:
        items, run = play(server, tmp_path)
        assert solved(items) == [1, 1, 1]
        failed = lines(run)["1"]
        assert reason in failed["missing"] and "metrics" not in failed
        assert [message["role"] for message in failed["messages"]] == ["assistant", "tool"] * (turn - 1)
        assert count_missing_items(lines(run).values()) == {failed["missing"]: 1}
        asked, mended = len(server.bodies), True
        items, run = play(server, tmp_path)
        assert solved(items) == [1, 1, 1, 1] and not count_missing_items(lines(run).values())
        assert len(run.records(run.eval_dir / "after.jsonl")) == 4
        assert {number(body) for body in server.bodies[asked:]} == {1}  # what is there is not paid for again


def test_the_evaluation_ends_only_where_no_item_can_be_had(tmp_path: Path) -> None:
    with ChatServer(lambda body, _: refusal(400, OVERFLOW)) as server:
        with pytest.raises(UserError, match="none of 4 items was played: HTTP 400: This model's maximum"):
            play(server, tmp_path)
        server.respond = good
        assert solved(play(server, tmp_path)[0]) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("what", "reason", "most"),
    [
        (refusal(401, "bad key"), "refuses the key in OPENAI_API_KEY: HTTP 401: bad key", 16),
        (refusal(404, "The model `m` does not exist."), "HTTP 404 for model m: The model `m` does not exist", 16),
        (refusal(500, "boom"), "HTTP 500: boom", 3 * (client.DOWN_AFTER + 16)),
    ],
)
def test_a_server_that_answers_nothing_is_given_up(what: Any, reason: str, most: int, tmp_path: Path) -> None:
    with ChatServer(lambda body, _: what) as server:
        with pytest.raises(UserError, match="none of 200 items was played") as told:
            play(server, tmp_path, batch=64, count=200)
        assert reason in str(told.value) and len(server.bodies) <= most


def test_a_server_that_goes_away_leaves_what_was_played(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: good(body) if n <= 20 else refusal(503, "gone")) as server:
        items, run = play(server, tmp_path, batch=8, retries=0, count=100)
        assert 4 <= len(items) <= 10 and set(solved(items)) == {1}
        assert len(server.bodies) < 60 and sum(count_missing_items(lines(run).values()).values()) == 100 - len(items)
        assert set(count_missing_items(lines(run).values())) == {"HTTP 503: gone"}


def test_nobody_at_the_address_is_known_at_once(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/v1 cannot be reached \(.*refused"):
        play(address, tmp_path, retries=6)
    assert time.monotonic() - started < 5


def test_what_passes_is_waited_for(tmp_path: Path) -> None:
    """Busy, away for a while, cut off or garbled once: no item is lost."""
    faults = [refusal(503, "loading"), refusal(429, "slow", **{"Retry-After": "0"}), Reply("", 502), Reply("<html>")]
    faults += [Reply(good({"messages": [{"role": "user", "content": "What is 1"}]}), cut=True), completion(None)]

    def respond(body: dict[str, Any], n: int) -> Any:
        return faults[n // 3 % len(faults)] if n % 3 == 0 else good(body)

    with ChatServer(respond) as server:
        items, _ = play(server, tmp_path, concurrency=1, count=12)
        assert solved(items) == [1] * 12


def test_a_slow_answer_is_asked_for_twice(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        if number(body) == 1:
            time.sleep(0.6)
        return good(body)

    with ChatServer(respond) as server:
        items, run = play(server, tmp_path, timeout=0.3)
        assert len(items) == 3 and "no answer within 0.3 s, after 2 tries" in lines(run)["1"]["missing"]


def test_an_answer_that_dribbles_in_is_too_slow_however_often_a_byte_comes(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        return Reply(good(body), dribble=4.0) if number(body) == 1 else good(body)

    with ChatServer(respond) as server:
        start = time.monotonic()
        items, run = play(server, tmp_path, timeout=0.3)
        assert time.monotonic() - start < 3
        assert len(items) == 3 and "no answer within 0.3 s, after 2 tries" in lines(run)["1"]["missing"]


def test_the_retry_after_header_is_kept(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: refusal(429, "slow", **{"Retry-After": "0.5"}) if n == 1 else good(body)) as server:
        started = time.monotonic()
        assert solved(play(server, tmp_path, count=1)[0]) == [1]
        assert time.monotonic() - started >= 0.5


# --- hints ------------------------------------------------------------------------------------------------------------


def test_an_address_that_is_not_the_apis_gets_a_hint(tmp_path: Path) -> None:
    with ChatServer(good) as server:
        with pytest.raises(UserError, match=rf"try the address {server.root}/v1;"):
            play(server.root + "/", tmp_path / "a")
        with pytest.raises(UserError, match="give the address without /chat/completions"):
            play(f"{server.url}/chat/completions", tmp_path / "b")
        assert solved(play(f"{server.url}/", tmp_path / "c")[0]) == [1, 1, 1, 1]  # a slash at the end is none


def test_a_model_that_is_not_there_is_told_those_that_are(tmp_path: Path) -> None:
    models = {"object": "list", "data": [{"id": "big"}, {"id": "small"}]}
    with (
        ChatServer(lambda body, _: refusal(404, "no such model"), models=models) as server,
        pytest.raises(UserError, match="no such model; the server has big, small"),
    ):
        play(server, tmp_path)


def test_a_redirect_is_named(tmp_path: Path) -> None:
    with (
        ChatServer(good, models={"data": []}) as other,
        ChatServer(lambda body, _: Reply("", 301, {"Location": other.url + "/chat/completions"})) as server,
        pytest.raises(UserError, match=f"the server redirects to {other.url}/chat/completions: give that address"),
    ):
        play(server, tmp_path)


@pytest.mark.parametrize("key", ["\u043a\u043b\u044e\u0447", "sk-\u2026", "two\nlines"])
def test_a_key_that_no_header_takes_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="the key in OPENAI_API_KEY has characters that are not printable ASCII"):
        EndpointEngine(configured("http://127.0.0.1:1/v1"))


def test_a_key_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret-value")
    with (
        ChatServer(lambda body, _: refusal(401, "Incorrect API key provided: very-secret-value")) as server,
        pytest.raises(UserError, match="HTTP 401: Incorrect API key provided: ") as told,
    ):
        play(server, tmp_path)
    assert "very-secret-value" not in str(told.value)


# --- parameters -------------------------------------------------------------------------------------------------------


def asks(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request."""
    return {key: value for key, value in body.items() if key not in ("messages", "model", "tools", "stream")}


def refusing(names: tuple[str, ...], words: str, status: int = 400) -> Callable[[dict[str, Any], int], Any]:
    """A server that refuses what any of `names` says; {name} in `words` is the one."""

    def respond(body: dict[str, Any], _: int) -> Any:
        found = next((name for name in names if name in body), None)
        return good(body) if found is None else refusal(status, words.replace("{name}", found))

    return respond


def test_every_sampling_value_that_matters_is_sent(tmp_path: Path) -> None:
    with ChatServer(good) as server:
        play(server, tmp_path, temperature=0.7, max_turn_tokens=33)
        asked = asks(server.bodies[0])
    sampling = {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert asked == {**sampling, "max_tokens": 33}


EXTRAS = ("repetition_penalty", "min_p", "top_k")


@pytest.mark.parametrize(
    ("respond", "left_out"),
    [
        (refusing(EXTRAS, "Unrecognized request argument supplied: {name}"), EXTRAS),
        (refusing(EXTRAS, "Invalid request"), EXTRAS),
        (refusing(EXTRAS, "body.{name}: Extra inputs are not permitted", 422), EXTRAS),
        (refusing(("min_p",), "min_p is not supported with this model"), ("min_p",)),
        (refusing(("top_k",), "Unknown parameter: top_k"), ("top_k",)),
        (refusing(("temperature",), "Unsupported value: 'temperature' does not support 0"), ("temperature",)),
        (refusing(("temperature", "top_p"), "'{name}' is not supported with this model"), ("temperature", "top_p")),
        (
            refusing(("temperature", "top_p", *EXTRAS), "Unsupported parameter: {name}"),
            ("temperature", "top_p", *EXTRAS),
        ),
    ],
)
def test_what_a_server_refuses_is_left_out_and_said(
    respond: Callable[[dict[str, Any], int], Any], left_out: tuple[str, ...], tmp_path: Path
) -> None:
    with ChatServer(respond) as server:
        engine, bench = EndpointEngine(configured(server.url)), Sums()
        assert engine.sampling(GREEDY) is None
        for task in bench.tasks(2):
            answer = engine._client.complete(task.prompt, task.tools, 99, GREEDY)
            assert answer.calls[0][0] == "add"
        sent = engine.sampling(GREEDY)
        refused = len(server.bodies) - 2
        assert not any(name in server.bodies[-1] for name in left_out) and refused <= len(left_out) + 1
    assert set(sent["chosen_by_server"]) == set(left_out) and not set(sent["sent"]) & set(left_out)


def answered_by(respond: Callable[[dict[str, Any], int], Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Two requests of one client; the bodies that the server saw."""
    asked = list(messages) or Sums().tasks(1)[0].prompt
    with ChatServer(respond) as server:
        engine = EndpointEngine(configured(server.url))
        for _ in range(2):
            engine._client.complete(asked, [], 512, GREEDY)
        return server.bodies


def test_the_token_limit_has_two_names() -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    seen = answered_by(lambda body, _: refusal(400, words) if "max_tokens" in body else completion(said("x")))
    assert len(seen) == 3 and [asks(body).get("max_completion_tokens") for body in seen] == [None, 512, 512]


def test_where_the_context_has_less_room_its_rest_is_the_limit() -> None:
    words = "'max_tokens' is too large: 512. This model's maximum context length is 600 tokens (512 > 600 - 300)."
    seen = answered_by(
        lambda body, _: refusal(400, words) if body.get("max_tokens", 0) > 300 else completion(said("x"))
    )
    assert ["max_tokens" in body for body in seen] == [True, False, True, False]  # the next prompt may be shorter


def test_a_server_that_wants_another_form_gets_it() -> None:
    def zero(body: dict[str, Any], _: int) -> Any:
        return completion(said("x")) if body["top_k"] >= 0 else refusal(400, "top_k must be at least 0, got -1")

    assert [body["top_k"] for body in answered_by(zero)] == [-1, 0, 0]

    def positive(body: dict[str, Any], _: int) -> Any:
        words = "`temperature` must be strictly positive"
        return completion(said("x")) if body["temperature"] > 0 else refusal(422, words)

    assert [body["temperature"] for body in answered_by(positive)] == [0, 0.01, 0.01]

    def developer(body: dict[str, Any], _: int) -> Any:
        words = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
        return refusal(400, words) if body["messages"][0]["role"] == "system" else completion(said("x"))

    assert [body["messages"][0]["role"] for body in answered_by(developer)] == ["system", "developer", "developer"]

    def no_thoughts(body: dict[str, Any], _: int) -> Any:
        words = "Additional properties are not allowed ('reasoning_content' was unexpected)"
        return refusal(400, words) if "reasoning_content" in body["messages"][-2] else completion(said("x"))

    thought = said("", reasoning_content="hm")
    seen = answered_by(no_thoughts, {"role": "user", "content": "a"}, thought, {"role": "user", "content": "b"})
    assert ["reasoning_content" in body["messages"][1] for body in seen] == [True, False, False]


def test_a_refusal_that_no_form_mends_keeps_its_first_words_and_costs_little(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], n: int) -> Any:
        return refusal(400, f"temperature, top_p, top_k, min_p and max_tokens: {n}")

    with ChatServer(respond) as server:
        with pytest.raises(UserError, match="max_tokens: 1;"):
            play(server, tmp_path, count=1)
        assert len(server.bodies) <= 10


def test_a_refusal_of_the_request_is_told_where_its_form_was_mended(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        return refusal(400, "unknown parameter: min_p") if "min_p" in body else refusal(400, OVERFLOW)

    with (
        ChatServer(respond) as server,
        pytest.raises(UserError, match="played: HTTP 400: This model's maximum context"),
    ):
        play(server, tmp_path)


# --- turns ------------------------------------------------------------------------------------------------------------


def test_reasoning_goes_back_under_the_name_it_came(tmp_path: Path) -> None:
    for key in ("reasoning_content", "reasoning"):

        def respond(body: dict[str, Any], _: int, key: str = key) -> Any:
            made = good(body)
            made["choices"][0]["message"] |= {key: "\nI need to add.\n"}
            turns = [message for message in body["messages"] if message["role"] == "assistant"]
            return made if all(turn.get(key) for turn in turns) else refusal(400, f"{key} is missing")

        with ChatServer(respond) as server:
            items, _ = play(server, tmp_path / key)
        assert solved(items) == [1, 1, 1, 1] and items[0]["messages"][0]["reasoning_content"] == "I need to add."


@pytest.mark.parametrize(("usage", "tokens"), [(None, 21), ({"prompt_tokens": "9"}, 21), ({"completion_tokens": 4}, 8)])
def test_tokens_are_estimated_where_a_server_does_not_count(usage: Any, tokens: int, tmp_path: Path) -> None:
    with ChatServer(lambda body, _: good(body) | {"usage": usage}) as server:
        items, _ = play(server, tmp_path, count=1)
    written = len('I add.\nadd{"a": 0, "b": 0}') // 4 + 1 + len("0") // 4 + 1
    assert items[0]["tokens"] == (tokens if usage and "completion_tokens" in usage else written)


def budgeted(before: int | None, final: int, limit: int) -> tuple[Any, list[int]]:
    """A trajectory and the budgets asked for: a first turn of 9 tokens, a result, an answer of `final` tokens.

    The answer begins `before` tokens after the prompt; None: the server does not count.
    """

    def respond(body: dict[str, Any], _: int) -> Any:
        called = body["messages"][-1]["role"] == "tool"
        written = min(final, body["max_tokens"]) if called else 9
        usage = {"prompt_tokens": 50 + (before or 0) * called, "completion_tokens": written}
        return good(body) | {"usage": usage if before is not None else None}

    with ChatServer(respond) as server:
        engine = EndpointEngine(configured(server.url, max_completion_tokens=limit, max_turn_tokens=None))
        (task,) = Sums().tasks(1)
        (played,) = engine.rollout([Episode(task, Adder())], GREEDY)
        return played, [body["max_tokens"] for body in server.bodies]


@pytest.mark.parametrize(("before", "limit"), [(30, 29), (None, 7)])
def test_a_result_that_exceeds_the_budget_was_not_obtained(before: int | None, limit: int) -> None:
    played, _ = budgeted(before, 4, limit)
    assert [message["role"] for message in played.messages] == ["assistant"]
    assert (played.calls, played.unexecuted, played.truncated) == ([], 1, True)


def test_a_result_that_takes_the_whole_budget_was_obtained() -> None:
    played, _ = budgeted(30, 4, 30)
    assert [message["role"] for message in played.messages] == ["assistant", "tool"]
    assert (len(played.calls), played.unexecuted, played.truncated) == (1, 0, True)


def test_an_answer_has_the_tokens_that_the_result_left_it() -> None:
    played, budgets = budgeted(30, 12, 40)
    assert budgets == [40, 31, 10] and played.sampled_tokens == 9 + 10
    played, budgets = budgeted(30, 10, 40)
    assert budgets == [40, 31] and not played.truncated


def test_calls_of_one_turn_with_one_id_are_kept_apart(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        results = [message for message in body["messages"] if message["role"] == "tool"]
        if not results:
            return completion(said(None, call("add", '{"a": 1, "b": 2}', id="x"), call("add", '{"a": 3}', id="x")))
        made = [made["id"] for made in body["messages"][-3]["tool_calls"]]
        assert made == [result["tool_call_id"] for result in results]
        return completion(said("+".join(result["content"] for result in results)))

    with ChatServer(respond) as server:
        items, _ = play(server, tmp_path, count=1)
    assert items[0]["messages"][-1]["content"] == "3+two numbers are wanted"
    assert Counter(message["role"] for message in items[0]["messages"]) == {"assistant": 2, "tool": 2}
