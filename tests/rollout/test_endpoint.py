"""A model behind a server that misbehaves: one item fails as one item, and the next invocation tries it again."""

from __future__ import annotations

import gzip
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.errors import UserError
from agentrl.endpoint import client
from agentrl.evaluation.results import count_missing_items
from agentrl.rollout.endpoint import EndpointEngine
from tests.support.chat_server import ChatServer, Reply, completion, said
from tests.support.sums_server import (
    OVERFLOW,
    configured,
    good,
    lines,
    number,
    play,
    refusal,
    solved,
)

# --- one item fails as one item ---------------------------------------------------------------------------------------


FAULTS = [
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
]


@pytest.mark.parametrize(
    ("what", "reason", "turn"),
    [
        pytest.param(*fault, turn, marks=() if (n + turn) % 2 else pytest.mark.slow)  # each is fast in one turn
        for n, fault in enumerate(FAULTS)
        for turn in (1, 2)
    ],
)
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
