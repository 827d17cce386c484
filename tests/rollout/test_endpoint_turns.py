"""How the turns that a server plays are kept, and how they use up the budget of tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.engine import Episode
from agentrl.rollout.endpoint import EndpointEngine
from tests.support.chat_server import ChatServer, call, completion, said
from tests.support.sums_server import (
    GREEDY,
    Adder,
    Sums,
    configured,
    good,
    play,
    refusal,
    solved,
)


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
