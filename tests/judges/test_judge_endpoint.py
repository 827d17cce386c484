"""The judge against a real HTTP server on loopback: faults, kills, budgets, keys."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.judges import OpenAIJudge
from agentrl.core.judge import JudgeRequest, JudgeStopped
from agentrl.judges.cache import Usage, VerdictCache
from agentrl.judges.openai import EndpointJudge, RateLimiter, retry_after
from tests.support.chat_server import ChatServer, Reply, completion, said
from tests.support.judge_server import JudgeServer, expected

CONFIG = OpenAIJudge(
    name="openai",
    base_url="http://localhost/v1",
    model="m",
    api_key_env="JUDGE_TEST_KEY",
    temperature=0.0,
    max_tokens=64,
    system_rubric=None,
    user_rubric=None,
    parse_retries=2,
    concurrency=8,
    requests_per_minute=None,
    timeout=1.0,
    retries=6,
    down_after=5,
    cache=None,
    price_prompt=1.0,
    price_completion=10.0,
    max_cost=None,
    max_total_tokens=None,
    max_requests=None,
)


def two_sided(system: str, user: str, response: str) -> list[JudgeRequest]:
    return [JudgeRequest("system", system, response), JudgeRequest("user", user, response)]


REQUESTS = [request for n in range(100) for request in two_sided(f"rule {n}", f"question {n}", f"answer {n}")]
COST = (100 * 1.0 + 10 * 10.0) / 1e6  # of one call, by the server's counts and the prices above
KEY = "sk-very-secret-0123"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", KEY)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.judges.openai.FIRST_WAIT", 0.01)


def judge_of(server: JudgeServer, folder: Path, payer: str = "run", **changes: object) -> EndpointJudge:
    config = CONFIG.model_copy(update={"base_url": server.url, **changes})
    return EndpointJudge(config, VerdictCache(folder / "judge.sqlite"), payer)


def truth(requests: list[JudgeRequest]) -> list[float]:
    return [expected(request.prompt, request.response) for request in requests]


def tenth(digest: str, attempt: int) -> str | None:
    """One request in ten fails at first, one in a hundred twice; each kind of fault has its share."""
    number = int(digest[:8], 16)
    kinds = ("429", "500", "timeout", "cut_body", "cut_reply")
    return kinds[number // 1000 % 5] if number % 100 < (10, 1)[attempt > 0] and attempt < 2 else None


@pytest.mark.slow
def test_two_hundred_at_once_with_a_tenth_failing(tmp_path: Path) -> None:
    with JudgeServer(fault=tenth) as server:
        judge = judge_of(server, tmp_path, concurrency=200)
        judge.log = tmp_path / "judge.jsonl"
        verdicts = judge.score(REQUESTS)
        assert [verdict.score for verdict in verdicts] == truth(REQUESTS)  # none lost, none swapped
        assert len(server.faults) >= 4 and sum(server.faults.values()) >= 15  # the faults did happen
        counts = judge.counts()
        paid = sum(server.served.values())  # a reply cut in half was paid for as well
        assert counts["missing"] == 0 and counts["requests"] == paid == 200 + server.faults["cut_reply"]
        assert counts["retries"] == sum(server.faults.values())
        assert judge.cache.spent("run") == Usage(paid, 100 * paid, 10 * paid, pytest.approx(paid * COST))
        assert len(judge.cache.entries()) == 200
        asked = sum(server.asked.values())
        assert judge.score(REQUESTS) == verdicts  # all from the disk now
        assert sum(server.asked.values()) == asked
        assert judge.counts()["cached"] == 200
        first, second = (json.loads(line) for line in judge.log.read_text().splitlines())
        assert (first["verdicts"], second["verdicts"], second["requests"]) == (200, 400, paid)
        assert first["spent_cost"] == second["spent_cost"] == pytest.approx(paid * COST)


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from tests.judges.test_judge_endpoint import CONFIG, REQUESTS, EndpointJudge, VerdictCache
    config = CONFIG.model_copy(update={{"base_url": sys.argv[1], "concurrency": 4}})
    judge = EndpointJudge(config, VerdictCache(sys.argv[2]), "run")
    assert len(judge.score(REQUESTS)) == 200
    print(judge.counts()["missing"])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_without_paying_twice(tmp_path: Path) -> None:
    script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parents[2])))
    with JudgeServer(fault=tenth, latency=0.01, hang=1.5) as server:
        command = [sys.executable, "-c", script, server.url, str(tmp_path / "judge.sqlite")]
        process = subprocess.Popen(command)
        while sum(server.served.values()) < 70:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert 0 < len(VerdictCache(tmp_path / "judge.sqlite").entries()) < 200
        last = subprocess.run(command, capture_output=True, text=True, check=True)
        assert last.stdout.strip() == "0"
        cache = VerdictCache(tmp_path / "judge.sqlite")
        assert {entry.request: entry.score for entry in cache.entries()} == dict(
            zip(REQUESTS, truth(REQUESTS), strict=True)
        )
        # Paid twice is at most what was on the wire when the kill came. A cut reply is asked again.
        again = sum(server.served.values()) - 200 - server.faults["cut_reply"]
        assert 0 <= again <= 4
        assert 0 <= sum(server.served.values()) - cache.spent("run").requests <= 4
        assert len(server.served) == 200


def test_equal_requests_are_judged_once(tmp_path: Path) -> None:
    with JudgeServer() as server:
        verdicts = judge_of(server, tmp_path).score([REQUESTS[0], REQUESTS[2], REQUESTS[0]])
        assert [verdict.score for verdict in verdicts] == truth([REQUESTS[0], REQUESTS[2], REQUESTS[0]])
        assert sum(server.asked.values()) == 2


def test_the_two_sides_are_isolated(tmp_path: Path) -> None:
    with JudgeServer() as server:
        judge_of(server, tmp_path, concurrency=1).score(two_sided("RULE-OF-SYSTEM", "WISH-OF-USER", "ANSWER"))
        system, user = (str(body["messages"]) for body in server.bodies)
        assert "RULE-OF-SYSTEM" in system and "WISH-OF-USER" not in system
        assert "WISH-OF-USER" in user and "RULE-OF-SYSTEM" not in user
        assert all(body["temperature"] == 0 and body["model"] == "m" for body in server.bodies)


def test_what_never_parses_is_missing_and_the_next_run_asks_again(tmp_path: Path) -> None:
    with JudgeServer(fault=lambda digest, attempt: "prose" if attempt < 3 else None) as server:
        judge = judge_of(server, tmp_path)
        (verdict,) = judge.score(REQUESTS[:1])
        assert verdict.score is None and verdict.note == "I would rather not say."
        assert sum(server.asked.values()) == 3  # the first try and parse_retries more
        assert server.bodies[1]["messages"][2:] == [
            {"role": "assistant", "content": "I would rather not say."},
            {
                "role": "user",
                "content": "That could not be read: no JSON object in the reply. Reply again with the one JSON object "
                "alone.",
            },
        ]
        assert judge.score(REQUESTS[:1])[0].score is None
        assert sum(server.asked.values()) == 3
        assert judge.cache.spent("run").requests == 3
        assert judge.counts()["missing"] == 2
        (again,) = judge_of(server, tmp_path).score(REQUESTS[:1])  # a judge that has come to its senses
        assert again.score == truth(REQUESTS[:1])[0]
        assert [entry.score for entry in judge.cache.entries()] == [again.score]  # in place of the unreadable one
        assert judge_of(server, tmp_path).score(REQUESTS[:1])[0].score == again.score
        assert sum(server.asked.values()) == 4


def test_a_second_server_with_the_same_model_name_is_asked(tmp_path: Path) -> None:
    with JudgeServer() as first, JudgeServer(reply=lambda messages: '{"score": 0.45}') as second:
        judge_of(first, tmp_path).score(REQUESTS[:4])
        assert [v.score for v in judge_of(second, tmp_path).score(REQUESTS[:4])] == [0.45] * 4
        assert sum(second.asked.values()) == 4
        assert [v.score for v in judge_of(first, tmp_path).score(REQUESTS[:4])] == truth(REQUESTS[:4])
        assert sum(first.asked.values()) == 4
        assert len(VerdictCache(tmp_path / "judge.sqlite").judges()) == 2


def test_json_mode_is_dropped_where_the_server_refuses_it(tmp_path: Path, quick: None) -> None:
    with JudgeServer(json_mode=False) as server:
        judge = judge_of(server, tmp_path, concurrency=1)
        assert [verdict.score for verdict in judge.score(REQUESTS[:5])] == truth(REQUESTS[:5])
        assert [("response_format" in body) for body in server.bodies] == [True] + [False] * 5


def refuse_json(server: JudgeServer, refused: Callable[[int], bool], message: str = "bad request") -> list[bool]:
    """Let `server` answer HTTP 400 to the JSON questions whose number `refused` picks; the list says what was asked."""
    asked: list[bool] = []

    def fault(body: dict[str, Any]) -> str | None:
        asked.append("response_format" in body)
        return message if asked[-1] and refused(sum(asked) - 1) else None

    server.refuse = fault
    return asked


def test_one_refusal_does_not_turn_json_mode_off(tmp_path: Path, quick: None) -> None:
    """A request that is refused for its own sake, once with JSON mode, says nothing about the next."""
    with JudgeServer() as server:
        asked = refuse_json(server, lambda number: number == 1)
        judge = judge_of(server, tmp_path, concurrency=1, retries=0)
        assert [verdict.score for verdict in judge.score(REQUESTS[:4])] == truth(REQUESTS[:4])
        assert asked == [True, True, False, True, True]


def test_json_mode_goes_off_where_it_never_works(tmp_path: Path, quick: None) -> None:
    with JudgeServer() as server:
        asked = refuse_json(server, lambda number: True)  # a server that does not say what it dislikes
        judge = judge_of(server, tmp_path, concurrency=1, retries=0)
        assert [verdict.score for verdict in judge.score(REQUESTS[:5])] == truth(REQUESTS[:5])
        assert asked == [True, False] * 3 + [False] * 2


def test_many_requests_that_the_server_refuses_are_missing_too(tmp_path: Path, quick: None) -> None:
    """The replies to a prompt that a moderation refuses come one after the other; the server is not down."""
    with JudgeServer(fault=lambda digest, attempt: "413" if refuses else None) as server:
        judge, refuses = judge_of(server, tmp_path, concurrency=1), True
        first = judge.score(REQUESTS[:10])  # before it has answered anything
        refuses = False
        assert [verdict.score for verdict in judge.score(REQUESTS[10:12])] == truth(REQUESTS[10:12])
        refuses = True
        later = judge.score(REQUESTS[12:52])
    assert all(verdict.score is None and "413" in verdict.note for verdict in [*first, *later])
    with JudgeServer(fault=lambda digest, attempt: "413") as server, pytest.raises(JudgeStopped):
        judge_of(server, tmp_path / "other", concurrency=1).score(REQUESTS[:60])


def test_a_request_that_the_server_refuses_is_missing_and_the_others_go_on(tmp_path: Path, quick: None) -> None:
    with JudgeServer(fault=lambda digest, attempt: "413" if int(digest, 16) % 7 == 0 else None) as server:
        judge = judge_of(server, tmp_path, concurrency=1)
        scores = [verdict.score for verdict in judge.score(REQUESTS[:40])]
        refused = [score is None for score in scores]
        assert 0 < sum(refused) < 20
        assert [s for s in scores if s is not None] == [
            t for t, missing in zip(truth(REQUESTS[:40]), refused, strict=True) if not missing
        ]
        assert len(judge.cache.entries()) == 40 - sum(refused)  # a failure is not a verdict


@pytest.mark.parametrize(
    ("limits", "knob"),
    [
        ({"max_requests": 10}, "judge.max_requests=10"),
        ({"max_total_tokens": 1100}, "judge.max_total_tokens=1100"),
        ({"max_cost": 0.002}, "judge.max_cost=0.002"),
    ],
)
def test_a_budget_stops_the_run_and_is_remembered(limits: dict[str, float], knob: str, tmp_path: Path) -> None:
    with JudgeServer() as server:
        for _ in range(2):  # the second try is a resumed run: it finds the budget spent
            judge = judge_of(server, tmp_path, concurrency=4, **limits)
            with pytest.raises(JudgeStopped, match=knob.replace(".", r"\.")) as stopped:
                judge.score(REQUESTS[:60])
            assert "raise it" in str(stopped.value)
        served = sum(server.served.values())
        assert served == 10 if "max_requests" in limits else 10 <= served <= 13  # up to concurrency - 1 on the wire
        assert len(judge.cache.entries()) == served
        other = judge_of(server, tmp_path, payer="another run", concurrency=4, **limits)
        with pytest.raises(JudgeStopped):
            other.score(REQUESTS[:60])
        assert sum(server.served.values()) > served  # a budget is a run's own
        final = judge_of(server, tmp_path)
        assert [verdict.score for verdict in final.score(REQUESTS[:60])] == truth(REQUESTS[:60])
        assert sum(server.served.values()) == 60  # what the stopped runs paid for was not lost


def test_a_call_keeps_its_place_in_the_budget_until_its_cost_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer() as server:
        judge = judge_of(server, tmp_path, concurrency=4, max_requests=10)
        record = judge.cache.put

        def record_slowly(*args: Any) -> None:
            time.sleep(0.05)  # a busy disk: other threads ask for their place meanwhile
            record(*args)

        monkeypatch.setattr(judge.cache, "put", record_slowly)
        with pytest.raises(JudgeStopped, match=r"judge\.max_requests=10 is spent"):
            judge.score(REQUESTS[:60])
        assert sum(server.served.values()) == 10


def test_a_judge_that_goes_down_stops_the_run_and_loses_nothing(tmp_path: Path, quick: None) -> None:
    alive = [True]
    with JudgeServer(fault=lambda digest, attempt: None if alive[0] else "500") as server:
        judge = judge_of(server, tmp_path, retries=1, concurrency=2)
        judge.score(REQUESTS[:20])
        alive[0] = False
        with pytest.raises(JudgeStopped, match=r"does not answer \(.*500.*after 2 tries\).*start it"):
            judge.score(REQUESTS[:60])
        alive[0] = True
        assert [verdict.score for verdict in judge.score(REQUESTS[:60])] == truth(REQUESTS[:60])
        assert all(count == 1 for count in server.served.values())


def test_nobody_at_the_address(tmp_path: Path, quick: None) -> None:
    with JudgeServer() as server:
        judge = judge_of(server, tmp_path, retries=0)
        judge.check()  # no list of models is no reason to refuse
    judge = judge_of(server, tmp_path, retries=0)
    with pytest.raises(JudgeStopped, match=r"judge\.base_url=http://127\.0\.0\.1:\d+/v1 does not answer"):
        judge.check()
    with pytest.raises(JudgeStopped, match="does not answer"):
        judge.score(REQUESTS[:20])


def test_the_key_comes_from_the_environment_and_reaches_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer(fault=lambda digest, attempt: "401") as server:
        judge = judge_of(server, tmp_path)
        with pytest.raises(JudgeStopped, match=r"judge\.api_key_env=JUDGE_TEST_KEY is refused") as refused:
            judge.score(REQUESTS[:1])
        assert "Bearer ***" in str(refused.value) and KEY not in str(refused.value)  # the server repeats it
        monkeypatch.delenv("JUDGE_TEST_KEY")
        with pytest.raises(JudgeStopped, match="JUDGE_TEST_KEY: that environment variable is not set"):
            judge_of(server, tmp_path)
        judge_of(server, tmp_path, api_key_env=None)
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY.encode() not in files


def test_retry_after_and_the_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert retry_after("7") == 7
    assert retry_after(None) == retry_after("soon") == retry_after("-3") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2999 07:28:00 GMT") > 1e9
    monkeypatch.setattr("agentrl.judges.openai.time.monotonic", lambda: 100.0)
    limiter = RateLimiter(120)  # one in half a second
    assert [limiter.delay() for _ in range(3)] == [0, 0.5, 1.0]
    assert [RateLimiter(None).delay() for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ({"choices": None, "error": {"message": "Provider returned error"}}, "Provider returned error, after 2 tries"),
        (Reply("<html><title>Sign in</title></html>", headers={"Content-Type": "text/html"}), "a web page (Sign in)"),
        (Reply('{"choices": ['), "broken JSON"),
        (completion(None), "the choice has no message"),
        (completion(said(None), "content_filter"), "content_filter"),
    ],
)
def test_what_is_no_answer_is_a_missing_verdict_with_its_reason(
    answer: Any, note: str, quick: None, tmp_path: Path
) -> None:
    with ChatServer(lambda body, number: answer) as server:
        config = CONFIG.model_copy(update={"base_url": server.url, "retries": 1})
        judge = EndpointJudge(config, VerdictCache(tmp_path / "judge.sqlite"), "run")
        (verdict,) = judge.score(REQUESTS[:1])
    assert verdict.score is None and note in verdict.note


def test_a_reply_that_dribbles_in_is_a_missing_verdict_within_the_time_of_a_call(tmp_path: Path, quick: None) -> None:
    answer = completion(said('{"score": 1}'))
    with ChatServer(lambda body, number: Reply(answer, dribble=4.0)) as server:
        judge = EndpointJudge(
            CONFIG.model_copy(update={"base_url": server.url, "timeout": 0.3, "retries": 1, "down_after": 3}),
            VerdictCache(tmp_path / "judge.sqlite"),
            "run",
        )
        start = time.monotonic()
        (verdict,) = judge.score(REQUESTS[:1])
        assert time.monotonic() - start < 3
        assert verdict.score is None and "no answer within 0.3 s, after 2 tries" in verdict.note
