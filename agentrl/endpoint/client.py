"""Gets chat completions from a server that may be slow, busy, away or wrong. Retries are bounded and end in a reason.

The work goes on if the server refuses one request. It stops if the server refuses the key or the model, and after many
failures in a row: then the server counts as down, and no request waits for it any longer.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import openai

from agentrl.config.algos.evaluate import Endpoint
from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.core.text import replace_surrogates
from agentrl.endpoint.answer import Answer, NoAnswer, read_answer, refusal_words, shorten
from agentrl.endpoint.form import SAMPLING, Form, Messages
from agentrl.endpoint.waiting import FIRST_WAIT, LONGEST_RETRY_AFTER, call_within, is_temporary, retry_after
from agentrl.store.redact import mask_secrets

LONGEST_WAIT = 16.0  # seconds between tries
HINT_WAIT = 10.0  # seconds to wait for the names of a server's models, which only improve an error text
DOWN_AFTER = 20  # failures in a row after which the server counts as down
REFUSED_ALL = (401, 402, 403, 404, 405)  # the server refuses every request; 403 may also be a moderated prompt
MOST_FORMS = 8  # forms of one refused request to try


class Unanswered(Exception):
    """A request without an answer. `kind` says why, and decides how often the request is tried.

    refused     the server refuses this request
    server      the server refuses every request
    busy, away  the server may answer later
    garbled     the response was not a completion
    slow        no response came in time
    down        the server had too many failures
    """

    def __init__(self, kind: str, reason: str, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(reason)
        self.kind, self.wait, self.status = kind, wait, status


class ChatClient:
    """Asks one model at one address. Threads may share a client."""

    def __init__(self, endpoint: Endpoint, model: str, thinking: bool | None = None) -> None:
        self._url, self._model, self._variable = str(endpoint.base_url), model, endpoint.api_key_env
        self._timeout = endpoint.timeout
        self._retries = {"busy": endpoint.retries, "away": endpoint.retries, "garbled": 2, "slow": 1}
        self._client = openai.OpenAI(
            base_url=self._url, api_key=_key(endpoint), max_retries=0, timeout=endpoint.timeout
        )
        self._form, self._proven = Form(thinking=thinking), set[str]()  # proven: parameters accepted so far
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._random = random.Random()  # for jitter; the random states of the run stay untouched
        self._met = False  # whether the server ever answered anything
        self._answers, self._failures = 0, 0  # completions so far, failures since the last completion
        self._down: str | None = None

    def complete(self, messages: Messages, tools: Messages, budget: int, decoding: Decoding) -> Answer:
        """Return the model's next message. Raises Unanswered after the last try."""
        messages, tools = replace_surrogates(messages), replace_surrogates(tools)
        known = self._form
        try:
            answer, form = self._negotiate(known, (messages, tools, budget, decoding), tried={known})
        except Unanswered as failure:
            self._note(failure)
            raise
        with self._lock:
            self._answers, self._failures = self._answers + 1, 0
            # Keep the new form, except its lack of a limit: a limit too large for this prompt may fit the next. Keep
            # the old form if it lacks a parameter that the server has accepted: that was not the fault.
            if form != known and not form.without & self._proven:
                self._form = form if form.limit is not None else replace(form, limit=self._form.limit)
            self._proven |= set(form.sampling(decoding))
        return answer

    def sampling(self, decoding: Decoding) -> dict[str, Any] | None:
        """Return the sampling values that requests send, and the names of those that the server chooses itself.

        Returns None before the first answer.
        """
        if not self._answers:
            return None
        sent = self._form.sampling(decoding)
        return {"sent": sent, "chosen_by_server": [name for name in SAMPLING if name not in sent]}

    def _negotiate(self, form: Form, request: Any, tried: set[Form]) -> tuple[Answer, Form]:
        """Return the answer, and the form that the server accepted. A refused request is tried in milder forms."""
        body = form.body(*request)
        try:
            return self._patiently(body), form
        except Unanswered as refusal:
            if refusal.kind != "refused" or refusal.status not in (400, 422):
                raise
            told = refusal
            for milder in form.milder_forms(str(refusal), body, self._proven):
                if milder in tried or len(tried) > MOST_FORMS:
                    continue
                tried.add(milder)
                try:
                    return self._negotiate(milder, request, tried)
                except Unanswered as again:
                    if again.kind != "refused":
                        raise
                    if not form.parameters_named_in(str(again), body):  # the milder form mended that fault
                        told = again
            raise told from None

    def _patiently(self, body: dict[str, Any]) -> Answer:
        """Send one request, and try again while that can help."""
        tries = 0
        while True:
            if self._down is not None:
                raise Unanswered("down", self._down)
            try:
                return self._send(body)
            except Unanswered as failure:
                retries = self._retries.get(failure.kind, 0)
                if failure.kind == "away" and not self._met:
                    retries = min(retries, 2)  # the address has never answered
                if tries >= retries or failure.wait > LONGEST_RETRY_AFTER:
                    tried = f", after {tries + 1} tries" if tries else ""
                    raise Unanswered(failure.kind, f"{failure}{tried}", status=failure.status) from failure
                pause = min(LONGEST_WAIT, FIRST_WAIT * 2**tries) * (0.5 + self._random.random() / 2)
                self._stop.wait(max(pause, failure.wait))
                tries += 1

    def _send(self, body: dict[str, Any]) -> Answer:
        """Send one request once."""
        rest = {key: value for key, value in body.items() if key != "messages"}
        try:
            create: Any = self._client.chat.completions.with_raw_response.create
            extra = {**rest, "stream": False}
            raw = call_within(
                self._timeout, lambda: create(model=self._model, messages=body["messages"], extra_body=extra)
            )
            self._met = True
            response = raw.http_response
            try:
                return read_answer(response.text, response.headers.get("content-type", ""))
            except NoAnswer as what:
                raise self._unreadable(what, response) from what
        except openai.APIStatusError as error:
            self._met = True
            raise self._refusal(error) from None  # the original may quote the key
        except (openai.APITimeoutError, TimeoutError) as error:
            raise Unanswered("slow", f"no answer within {self._timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Unanswered("away", f"{self._url} cannot be reached ({self._cause(error)})") from error

    def _refusal(self, error: openai.APIStatusError) -> Unanswered:
        response = error.response
        words = refusal_words(response.text, response.headers.get("content-type", ""))
        return self._failure(error.status_code, words, response)

    def _unreadable(self, what: NoAnswer, response: Any) -> Unanswered:
        """Make the failure for a response with status 200 without a completion. Its body may name another status."""
        if what.status is not None:
            return self._failure(what.status, str(what), response)
        words = self._clean(str(what))
        return Unanswered("refused", words) if what.final else Unanswered("garbled", words + self._hint(response))

    def _failure(self, status: int, words: str, response: Any) -> Unanswered:
        """Make the failure for an HTTP status."""
        words = self._clean(words)
        if status in (401, 403):
            reason = f"{self._url} refuses the key in {self._variable}: HTTP {status}: {words}"
            return Unanswered("server", reason, status=status)
        if status in REFUSED_ALL:
            reason = f"{self._url} answers HTTP {status} for model {self._model}: {words}{self._hint(response)}"
            return Unanswered("server", reason, status=status)
        if is_temporary(status):
            wait = retry_after(response.headers.get("retry-after"))
            asks = f"; the server asks to wait {wait:.0f} s" if wait > LONGEST_RETRY_AFTER else ""
            return Unanswered("busy", f"HTTP {status}: {words}{asks}", wait, status)
        return Unanswered("refused", f"HTTP {status}: {words}", status=status)

    def _hint(self, response: Any) -> str:
        """Return what may be wrong with the address or the model's name, to append to a reason."""
        if response.history:
            return f"; the server redirects to {response.url}: give that address"
        path = urlsplit(self._url).path.rstrip("/")
        if path.endswith("/completions"):
            return "; give the address without /chat/completions"
        if not re.search(r"/v\d+\w*(/|$)", path):
            return f"; try the address {self._url.rstrip('/')}/v1"
        served = self._list_models() if response.status_code == 404 else []
        return f"; the server has {', '.join(served[:8])}" if served and self._model not in served else ""

    def _list_models(self) -> list[str]:
        """Return the names of the server's models. Empty if the server does not list them."""
        try:
            text = call_within(HINT_WAIT, self._client.models.with_raw_response.list).http_response.text
            return [str(one["id"]) for one in json.loads(text)["data"]]
        except (
            openai.APIError,
            TimeoutError,
            ValueError,
            KeyError,
            TypeError,
        ):  # not every server lists models, and the names are only a hint
            return []

    def _note(self, failure: Unanswered) -> None:
        """Count a failure of the server. Declare the server down if no further request can succeed."""
        with self._lock:
            if failure.kind in ("refused", "down"):
                return
            self._failures += 1
            hopeless = failure.kind == "server" and failure.status != 403
            first = self._answers == 0 and (hopeless or not self._met)
            if self._down is None and (first or self._failures >= DOWN_AFTER):
                self._down = str(failure)
                self._stop.set()  # requests that wait for the server give up

    def _cause(self, error: Exception) -> str:
        inner = error.__cause__ or error
        return self._clean(f"{type(inner).__name__}: {inner}" if str(inner) else type(inner).__name__)

    def _clean(self, text: str) -> str:
        """Return the text in one line, without the key, which some servers repeat."""
        key = self._client.api_key
        return mask_secrets(shorten(text.replace(key, "***") if key and key != NO_KEY else text))


NO_KEY = "none"  # the client library needs some key


def _key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.api_key_env, "").strip()
    local = any(host in str(endpoint.base_url) for host in ("//localhost", "//127.0.0.1", "//[::1]"))
    if not key and not local:
        raise UserError(
            f"algo.endpoint.api_key_env={endpoint.api_key_env}: the environment has no such variable; export the "
            "endpoint's key in it, or name another variable"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the key in {endpoint.api_key_env} has characters that are not printable ASCII; export it again"
        )
    return key or NO_KEY
