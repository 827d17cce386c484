"""Chat completions from a server that may be slow, busy, away, or wrong: bounded retries, and a reason at the end.

One request that the server refuses is no reason to stop. A key or a model that it refuses is, and so are many failures
in a row: then the server is down, and nobody waits for it any longer.
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

from agentrl.config.algos import Endpoint
from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.core.text import well_formed
from agentrl.endpoint.answer import Answer, NoAnswer, read_answer, refusal_words, short
from agentrl.endpoint.form import SAMPLING, Form, Messages
from agentrl.endpoint.waiting import FIRST_WAIT, LONGEST_RETRY_AFTER, passes, retry_after, within
from agentrl.store.redact import mask_secrets

LONGEST_WAIT = 16.0  # seconds between tries
HINT_WAIT = 10.0  # for the names of a server's models, which only make a reason clearer
DOWN_AFTER = 20  # failures of the server in a row
REFUSED_ALL = (401, 402, 403, 404, 405)  # no request of ours will change it; 403 may be a moderated prompt
MOST_FORMS = 8  # of one request that the server refuses


class Unanswered(Exception):
    """A request without an answer. `kind` is what is at fault and so how often it is tried.

    refused: the server takes this very request for wrong; server: it takes none; busy, away: it may soon be back;
    garbled: what came was no completion; slow: nothing came in time; down: it was given up.
    """

    def __init__(self, kind: str, reason: str, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(reason)
        self.kind, self.wait, self.status = kind, wait, status


class ChatClient:
    """Asks one model behind one address; threads share it."""

    def __init__(self, endpoint: Endpoint, model: str, thinking: bool | None = None) -> None:
        self._url, self._model, self._variable = str(endpoint.base_url), model, endpoint.api_key_env
        self._timeout = endpoint.timeout
        self._retries = {"busy": endpoint.retries, "away": endpoint.retries, "garbled": 2, "slow": 1}
        self._client = openai.OpenAI(
            base_url=self._url, api_key=_key(endpoint), max_retries=0, timeout=endpoint.timeout
        )
        self._form, self._proven = Form(thinking=thinking), set[str]()  # the parameters that the server once took
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._random = random.Random()  # jitter of its own: the run's random states are not touched
        self._met = False  # whether the server ever answered anything
        self._answers, self._failures = 0, 0  # completions so far, failures of the server since the last
        self._down: str | None = None

    def complete(self, messages: Messages, tools: Messages, budget: int, decoding: Decoding) -> Answer:
        """The model's next message. Raises Unanswered once nothing more is to be tried."""
        messages, tools = well_formed(messages), well_formed(tools)
        known = self._form
        try:
            answer, form = self._negotiate(known, (messages, tools, budget, decoding), tried={known})
        except Unanswered as failure:
            self._note(failure)
            raise
        with self._lock:
            self._answers, self._failures = self._answers + 1, 0
            # A limit that was too large for one prompt is not for the next; what was taken before was not at fault.
            if form != known and not form.without & self._proven:
                self._form = form if form.limit is not None else replace(form, limit=self._form.limit)
            self._proven |= set(form.sampling(decoding))
        return answer

    def sampling(self, decoding: Decoding) -> dict[str, Any] | None:
        """What a request says on sampling, and which values are the server's own because it takes none.

        None before the first answer.
        """
        if not self._answers:
            return None
        sent = self._form.sampling(decoding)
        return {"sent": sent, "chosen_by_server": [name for name in SAMPLING if name not in sent]}

    def _negotiate(self, form: Form, request: Any, tried: set[Form]) -> tuple[Answer, Form]:
        """The answer, and the form that the server took; a refused request is tried in milder forms."""
        body = form.body(*request)
        try:
            return self._patiently(body), form
        except Unanswered as refusal:
            if refusal.kind != "refused" or refusal.status not in (400, 422):
                raise
            told = refusal
            for milder in form.milder(str(refusal), body, self._proven):
                if milder in tried or len(tried) > MOST_FORMS:
                    continue
                tried.add(milder)
                try:
                    return self._negotiate(milder, request, tried)
                except Unanswered as again:
                    if again.kind != "refused":
                        raise
                    if not form.parameters_named_in(str(again), body):  # what was wrong with the form was mended
                        told = again
            raise told from None

    def _patiently(self, body: dict[str, Any]) -> Answer:
        """One request, tried again while that can help."""
        tries = 0
        while True:
            if self._down is not None:
                raise Unanswered("down", self._down)
            try:
                return self._send(body)
            except Unanswered as failure:
                retries = self._retries.get(failure.kind, 0)
                if failure.kind == "away" and not self._met:
                    retries = min(retries, 2)  # nobody was ever there
                if tries >= retries or failure.wait > LONGEST_RETRY_AFTER:
                    tried = f", after {tries + 1} tries" if tries else ""
                    raise Unanswered(failure.kind, f"{failure}{tried}", status=failure.status) from failure
                pause = min(LONGEST_WAIT, FIRST_WAIT * 2**tries) * (0.5 + self._random.random() / 2)
                self._stop.wait(max(pause, failure.wait))
                tries += 1

    def _send(self, body: dict[str, Any]) -> Answer:
        """One request on the wire."""
        rest = {key: value for key, value in body.items() if key != "messages"}
        try:
            create: Any = self._client.chat.completions.with_raw_response.create
            extra = {**rest, "stream": False}
            raw = within(self._timeout, lambda: create(model=self._model, messages=body["messages"], extra_body=extra))
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
        """A response with status 200 that holds no completion; its body may name the status that it means."""
        if what.status is not None:
            return self._failure(what.status, str(what), response)
        words = self._clean(str(what))
        return Unanswered("refused", words) if what.final else Unanswered("garbled", words + self._hint(response))

    def _failure(self, status: int, words: str, response: Any) -> Unanswered:
        """What an HTTP status means for this request and the next."""
        words = self._clean(words)
        if status in (401, 403):
            reason = f"{self._url} refuses the key in {self._variable}: HTTP {status}: {words}"
            return Unanswered("server", reason, status=status)
        if status in REFUSED_ALL:
            reason = f"{self._url} answers HTTP {status} for model {self._model}: {words}{self._hint(response)}"
            return Unanswered("server", reason, status=status)
        if passes(status):
            wait = retry_after(response.headers.get("retry-after"))
            asks = f"; it asks to wait {wait:.0f} s" if wait > LONGEST_RETRY_AFTER else ""
            return Unanswered("busy", f"HTTP {status}: {words}{asks}", wait, status)
        return Unanswered("refused", f"HTTP {status}: {words}", status=status)

    def _hint(self, response: Any) -> str:
        """What may be wrong with the address or the model's name, to be appended to a reason."""
        if response.history:
            return f"; it redirects to {response.url}: give that address"
        path = urlsplit(self._url).path.rstrip("/")
        if path.endswith("/completions"):
            return "; give the address without /chat/completions"
        if not re.search(r"/v\d+\w*(/|$)", path):
            return f"; does the address end in /v1? {self._url.rstrip('/')}/v1"
        served = self._list_models() if response.status_code == 404 else []
        return f"; it serves {', '.join(served[:8])}" if served and self._model not in served else ""

    def _list_models(self) -> list[str]:
        """Names of the server's models; none where it lists none."""
        try:
            text = within(HINT_WAIT, self._client.models.with_raw_response.list).http_response.text
            return [str(one["id"]) for one in json.loads(text)["data"]]
        except (
            openai.APIError,
            TimeoutError,
            ValueError,
            KeyError,
            TypeError,
        ):  # few servers list models, and it is only a hint
            return []

    def _note(self, failure: Unanswered) -> None:
        """Count a failure of the server's, and give it up where no further request can do better."""
        with self._lock:
            if failure.kind in ("refused", "down"):
                return
            self._failures += 1
            hopeless = failure.kind == "server" and failure.status != 403
            first = self._answers == 0 and (hopeless or not self._met)
            if self._down is None and (first or self._failures >= DOWN_AFTER):
                self._down = str(failure)
                self._stop.set()  # whoever waits for it gives up

    def _cause(self, error: Exception) -> str:
        inner = error.__cause__ or error
        return self._clean(f"{type(inner).__name__}: {inner}" if str(inner) else type(inner).__name__)

    def _clean(self, text: str) -> str:
        """One line, without the key, which some servers repeat."""
        key = self._client.api_key
        return mask_secrets(short(text.replace(key, "***") if key and key != NO_KEY else text))


NO_KEY = "none"  # the client insists on one


def _key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.api_key_env, "").strip()
    local = any(host in str(endpoint.base_url) for host in ("//localhost", "//127.0.0.1", "//[::1]"))
    if not key and not local:
        raise UserError(
            f"the environment has no {endpoint.api_key_env}; export the endpoint's key, or name another variable "
            "with algo.endpoint.api_key_env=..."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the key in {endpoint.api_key_env} holds characters that no key has; export it again, in ASCII"
        )
    return key or NO_KEY
