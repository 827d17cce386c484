"""A judge behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import openai

from agentrl.config.judges import OpenAIJudge
from agentrl.core.judge import JudgeStopped, Verdict
from agentrl.endpoint.answer import Answer, NoAnswer, read_answer
from agentrl.endpoint.waiting import FIRST_WAIT, LONGEST_RETRY_AFTER, call_within, is_temporary, retry_after
from agentrl.judges.cache import Usage, VerdictCache
from agentrl.judges.form import Form, Messages
from agentrl.judges.rubric_judge import Question, RubricJudge
from agentrl.judges.rubrics import rubric_form
from agentrl.store.redact import mask_secrets

REFUSALS = 10  # times `down_after`: requests in a row that a server may refuse
NO_MONEY = 402  # HTTP status
LONGEST_WAIT = 30.0  # seconds between tries, at most


class EndpointJudge(RubricJudge):
    """Calls the endpoint concurrently, with retries, a rate limit and a budget.

    A call that fails on the way is tried again. A call that fails for good gives a missing verdict, which is not
    cached. `down_after` such failures in a row stop the judge.
    """

    def __init__(self, config: OpenAIJudge, cache: VerdictCache, payer: str, form: Form | None = None):
        form = form or rubric_form(config.system_rubric, config.user_rubric)
        self._max_tokens = form.max_tokens or config.max_tokens
        settings = {
            "server": config.base_url.rstrip("/"),
            "temperature": config.temperature,
            "max_tokens": self._max_tokens,
        }
        super().__init__(config.model, form, settings, config.parse_retries, cache, payer)
        self.config = config
        self._key = api_key(config.api_key_env)
        self._client = openai.OpenAI(base_url=config.base_url, api_key=self._key, timeout=config.timeout, max_retries=0)
        self._json = JsonMode(on=form.json)
        self._limiter = RateLimiter(config.requests_per_minute)
        self._stop = threading.Event()
        self._in_flight = 0  # calls whose cost is not yet recorded
        self._place_released = threading.Condition(self._lock)
        self._failures_in_a_row = 0
        self._random = random.Random()  # its own generator for jitter: the run's random states stay as they are

    def check(self) -> None:
        """Send one free request, so that a wrong address or key is known before anything expensive begins.

        Raises:
            JudgeStopped: no server answers, or the key is refused. Other refusals pass, because few servers list their
                models.
        """
        for attempt in range(3):
            try:
                call_within(self.config.timeout, self._client.models.list)
                return
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise self._refusal(error) from None
            except (openai.APIConnectionError, TimeoutError) as error:
                if attempt == 2:
                    raise self._down(self._describe(error)) from None
                time.sleep(FIRST_WAIT)
            except (openai.APIError, json.JSONDecodeError):  # the server answers; many have no list of models
                return

    def _ask_all(self, questions: list[Question]) -> dict[str, Verdict]:
        if not questions:
            return {}
        self._stop.clear()
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="judge") as pool:
            futures: dict[str, Future[Verdict]] = {q.key: pool.submit(self._ask, q) for q in questions}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
                if any(future.done() and future.exception() for future in futures.values()):
                    raise next(e for f in futures.values() if f.done() and (e := f.exception()))
            except BaseException:
                self._stop.set()  # waiting threads give up; calls that were sent finish and are recorded
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return {key: future.result() for key, future in futures.items()}

    def _ask(self, question: Question) -> Verdict:
        """Ask one question until it has a verdict."""
        asked = question.messages
        for attempt in range(self.tries):
            try:
                reply, usage = self._call(asked)
            except GaveUp as error:
                return self._count_failure(str(error), error.refused)
            try:
                verdict, asked = self._read(question, reply, usage, last=attempt == self.tries - 1)
            finally:
                self._release()
            with self._lock:
                self._failures_in_a_row = 0
            if verdict is not None:
                return verdict
        raise AssertionError("the last attempt always gives a verdict")

    def _count_failure(self, reason: str, refused: bool) -> Verdict:
        """Return a missing verdict, or stop after too many failures in a row.

        A server may refuse many requests in a row that a moderation dislikes, e.g. all replies to a prompt.
        """
        with self._lock:
            self._failures_in_a_row += 1
            most = self.config.down_after * (REFUSALS if refused else 1)
            down = self._failures_in_a_row >= most
        if down:
            raise self._down(reason)
        return Verdict(None, reason)

    def _call(self, messages: Messages) -> tuple[str, Usage]:
        """Return the reply and the usage of one call. The call is tried again as long as that can help.

        An answered call keeps its place in the budget. The caller records its cost and then calls `_release`.

        Raises:
            GaveUp: every try failed, or the server refuses this request.
            JudgeStopped: the key is refused, the budget is spent, or another thread stopped the judge.
        """
        json_mode, attempt = self._json.on, 0
        while attempt <= self.config.retries:
            pause = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * (0.5 + self._random.random() / 2)
            try:
                answer = self._send(messages, json_mode)
                self._json.note_answer(json_mode)
                return answer
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._refusal(error) from None
            except openai.APIStatusError as error:
                if error.status_code == NO_MONEY:
                    raise self._refusal(error) from None
                reason = self._describe(error)
                if error.status_code in (400, 422) and json_mode:
                    json_mode = False  # some servers know no response_format; others refuse only this request
                    self._json.note_refusal(reason)
                    self._count(retries=1)
                    continue
                if not is_temporary(error.status_code):
                    raise GaveUp(reason, refused=True) from None
                pause = max(pause, retry_after(error.response.headers.get("retry-after")))
                if pause > LONGEST_RETRY_AFTER:
                    raise GaveUp(f"{reason}; it asks to wait {pause:.0f} s") from None
            except NoAnswer as error:
                reason = self._describe(error)
                if error.final:
                    raise GaveUp(reason, refused=True) from None
            except (openai.APIError, TimeoutError) as error:  # a timeout, or a broken connection
                reason = self._describe(error)
            attempt += 1
            if attempt <= self.config.retries:
                self._count(retries=1)
                self._pause(pause)
        raise GaveUp(f"{reason}, after {self.config.retries + 1} tries")

    def _send(self, messages: Messages, json_mode: bool) -> tuple[str, Usage]:
        """Send one call, under the budget and the rate limit. Only a call that fails gives its place back."""
        self._reserve()
        try:
            self._pause(self._limiter.delay())
            more: dict[str, Any] = {"response_format": {"type": "json_object"}} if json_mode else {}
            if self.config.temperature is not None:
                more["temperature"] = self.config.temperature
            more |= {"model": self.config.model, "max_tokens": self._max_tokens}
            create: Any  # the types of the client ask for a class for each role
            if self.form.raw:  # a text that the model continues as it is
                create = self._client.completions.with_raw_response.create
                more["prompt"] = messages[0]["content"]
            else:
                create = self._client.chat.completions.with_raw_response.create
                more["messages"] = messages
            raw = call_within(self.config.timeout, lambda: create(**more))
            response = raw.http_response
            answer = read_answer(response.text, response.headers.get("content-type", ""), self.form.raw)
            return answer.content, self._usage(answer, messages)
        except BaseException:
            self._release()
            raise

    def _reserve(self) -> None:
        """Take a place in the budget. Wait until it is known whether the calls under way leave one.

        Raises:
            JudgeStopped: the budget is spent. Calls under way may still exceed a limit of tokens or cost.
        """
        config, cache = self.config, self.cache
        with self._place_released:
            spent = cache.spent(self._payer)
            while (most := config.max_requests) and spent.requests < most <= spent.requests + self._in_flight:
                self._place_released.wait()
                spent = cache.spent(self._payer)
            for knob, limit, used in (
                ("max_requests", config.max_requests, spent.requests),
                ("max_total_tokens", config.max_total_tokens, spent.tokens),
                ("max_cost", config.max_cost, spent.cost),
            ):
                if limit is not None and used >= limit:
                    raise JudgeStopped(
                        f"judge.{knob}={limit:g} is spent ({spent.requests} requests, {spent.tokens} tokens, cost "
                        f"{spent.cost:.4f}); raise it and repeat the command: it continues with the verdicts in "
                        f"{cache.path}"
                    )
            self._in_flight += 1

    def _release(self) -> None:
        with self._place_released:
            self._in_flight -= 1
            self._place_released.notify_all()

    def _usage(self, answer: Answer, messages: Messages) -> Usage:
        """Return the tokens and the cost of a call. If the server reports no tokens, four bytes count as one token."""
        prompt, written = answer.usage.get("prompt_tokens"), answer.usage.get("completion_tokens")
        if prompt is None or written is None:
            prompt = sum(len(message["content"].encode()) for message in messages) // 4 + 1
            written = len(answer.content.encode()) // 4 + 1
        cost = (prompt * self.config.price_prompt + written * self.config.price_completion) / 1e6
        return Usage(1, prompt, written, cost)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise JudgeStopped("the judge was stopped")  # the thread that stopped it reports the reason

    def _down(self, reason: str) -> JudgeStopped:
        return JudgeStopped(
            f"judge.base_url={self.config.base_url} does not answer ({reason}); start it or correct the address, then "
            f"repeat the command: all verdicts so far are in {self.cache.path}"
        )

    def _refusal(self, error: openai.APIStatusError) -> JudgeStopped:
        knob = f"judge.api_key_env={self.config.api_key_env}"
        if isinstance(error, openai.NotFoundError):
            knob = f"judge.model={self.config.model} or judge.base_url={self.config.base_url}"
        return JudgeStopped(f"{knob} is refused by the judge: {self._describe(error)}; correct it")

    def _describe(self, error: Exception) -> str:
        """Return the error as one line, without the key, which some servers repeat."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        return mask_secrets(text.replace(self._key, "***"))


class JsonMode:
    """Decides whether to ask a server for JSON (response_format).

    A refusal concerns one request until it is clear that it concerns the server. JSON mode is off for good once a
    refusal names it, or after `ENOUGH` questions in a row that succeeded only without it. It stays on if it ever
    worked.
    """

    ENOUGH = 3

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self._worked = False
        self._refused = 0

    def note_answer(self, json_mode: bool) -> None:
        """Note that a question was answered, with JSON mode or, after a refusal, without it."""
        self._worked |= json_mode
        self._refused = 0 if json_mode else self._refused + 1
        if self._refused >= self.ENOUGH and not self._worked:
            self.on = False

    def note_refusal(self, reason: str) -> None:
        """Note that a question was refused with JSON mode, for `reason` in the server's words."""
        if not self._worked and re.search(r"response_format|json_object|json mode", reason, re.IGNORECASE):
            self.on = False


class GaveUp(Exception):
    """A request that gets no answer. `refused` says that the server answered, and refuses this request."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class RateLimiter:
    """Spaces calls evenly: at most `per_minute` a minute; None is no limit."""

    def __init__(self, per_minute: float | None):
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def delay(self) -> float:
        """Take the next turn and return the seconds until it begins."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._spacing
            return turn - now


def api_key(variable: str | None) -> str:
    """Return the key in the environment variable `variable`. Null means that the server needs no key.

    Raises:
        JudgeStopped: the variable is not set.
    """
    if variable is None:
        return "none"  # the client requires a key
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeStopped(
            f"judge.api_key_env={variable}: that environment variable is not set; export it, or set null if the server "
            "needs no key"
        )
    return key
