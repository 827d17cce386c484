"""What is asked of a server: every sampling value that matters, in a form that the server takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.errors import UserError
from agentrl.rollout.endpoint import EndpointEngine
from tests.support.chat_server import ChatServer, completion, said
from tests.support.sums_server import (
    GREEDY,
    OVERFLOW,
    Sums,
    asks,
    configured,
    good,
    play,
    refusal,
)


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
