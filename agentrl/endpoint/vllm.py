"""A stock `vllm serve` process: its settings, turns sampled from token ids, new weights. Over HTTP; no vLLM here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from agentrl.core.errors import UserError, first_line
from agentrl.endpoint.waiting import call_within

QUICK_S = 5.0  # for what a healthy server answers at once
SETTINGS_S = 60.0  # for its settings: vLLM looks over the whole machine before it tells them for the first time
SYNC_S = 600.0  # for weights to be read


class VllmTrouble(Exception):
    """The server refused a request, or is gone; the text says why."""


@dataclass(frozen=True)
class Ask:
    """One turn to sample."""

    model: str  # the name of the served model, or of an adapter
    ids: list[int]  # (L,) the context
    limit: int  # tokens at most, 1 or more
    seed: int
    temperature: float  # 0 is greedy
    top_p: float
    ends: list[int]  # tokens any of which ends the turn; no other does

    def body(self) -> dict[str, Any]:
        """The request, with every setting that the checkpoint's generation_config.json might bring otherwise."""
        return {
            "model": self.model,
            "prompt": self.ids,
            "max_tokens": self.limit,
            "seed": self.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": self.ends,
            "logprobs": 0,
            "return_token_ids": True,
        }


class VllmServer:
    """One server; every call, the first one included, raises VllmTrouble where it does not do what it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            urlsplit(self.url).port  # noqa: B018
        except ValueError as error:
            raise VllmTrouble("the port is not a number") from error
        self._client = openai.OpenAI(**self._client_options())

    def _client_options(self) -> dict[str, Any]:
        # vLLM's own variable for its key; the client insists on some.
        # A retry is for a connection that the server closed while it was idle; a turn has its seed, so it stays itself.
        return {"max_retries": 1, "base_url": self.url, "api_key": os.environ.get("VLLM_API_KEY") or "none"}

    def check_health(self) -> None:
        """Return if the server answers and its engine lives."""
        self._call("get", "/health", retries=0)

    def settings(self) -> dict[str, Any]:
        """The resolved configuration of the server; only a server in development mode tells it."""
        found = self._call("get", "/server_info?config_format=json", timeout=SETTINGS_S)
        if not isinstance(found, dict) or not isinstance(found.get("vllm_config"), dict):
            raise VllmTrouble("its answer to /server_info is not vLLM's")
        settings: dict[str, Any] = found["vllm_config"]
        return settings

    def model(self) -> tuple[str, int]:
        """The name of the served model, and the tokens of its longest context."""
        found = self._call("get", "/v1/models")
        try:
            first = found["data"][0]
            return str(first["id"]), int(first["max_model_len"])
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise VllmTrouble("its answer to /v1/models is not vLLM's") from error

    def reload(self, folder: str) -> None:
        """Take the weights of the safetensors files in `folder`, and forget what was computed with the old ones."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self._call("post", "/collective_rpc", body, SYNC_S)
        self.forget()

    def forget(self) -> None:
        """Empty the prefix cache."""
        found = self._call("post", "/reset_prefix_cache")
        if isinstance(found, dict) and found.get("success") is False:
            raise VllmTrouble("its prefix cache cannot be emptied while it serves requests; is it shared?")

    def load_adapter(self, name: str, folder: str) -> None:
        """Serve the adapter in `folder` as a model called `name`."""
        self._call("post", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, SYNC_S)

    def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter."""
        self._call("post", "/v1/unload_lora_adapter", {"lora_name": name})

    def sleep(self) -> None:
        """Move the weights to the CPU's memory and drop the key-value cache."""
        self._call("post", "/sleep?level=1", timeout=SYNC_S)

    def wake_up(self) -> None:
        """Undo `sleep`."""
        self._call("post", "/wake_up", timeout=SYNC_S)

    def _call(self, verb: str, path: str, body: Any = None, timeout: float | None = None, retries: int = 1) -> Any:
        limit = QUICK_S if timeout is None else timeout
        how: dict[str, Any] = {"cast_to": object, "options": {"max_retries": retries, "timeout": 2 * limit}}
        if body is not None:
            how["body"] = body
        try:
            return call_within(limit, lambda: getattr(self._client, verb)(path, **how))
        except (openai.OpenAIError, ValueError) as error:  # the latter: an answer that is not JSON
            raise VllmTrouble(describe_failure(error, path)) from error
        except TimeoutError as error:
            raise VllmTrouble(str(error)) from error

    def connection(self) -> openai.AsyncOpenAI:
        """A client for `sample`, for one event loop. It waits for a turn as long as the connection holds."""
        return openai.AsyncOpenAI(**self._client_options(), timeout=openai.Timeout(None, connect=QUICK_S))

    @staticmethod
    async def sample(connection: openai.AsyncOpenAI, ask: Ask) -> tuple[list[int], list[float]]:
        """The ids (T,) of one turn and their log-probs (T,), after temperature and top_p; NaN where it has none."""
        path = "/v1/completions"
        try:
            reply: Any = await connection.post(path, cast_to=object, body=ask.body())
            choice = reply["choices"][0]
            ids, logprobs = list(choice["token_ids"]), choice["logprobs"]["token_logprobs"]
            logprobs = [float("nan") if value is None else value for value in logprobs]
        except (openai.OpenAIError, ValueError) as error:
            raise VllmTrouble(describe_failure(error, path)) from error
        except (TypeError, KeyError, IndexError) as error:
            raise VllmTrouble(f"its answer to {path} has no token ids or no log-probs") from error
        if choice.get("finish_reason") not in ("stop", "length"):
            raise VllmTrouble(f"it broke a turn off ({choice.get('finish_reason')})")
        return ids, logprobs


def describe_failure(error: Exception, path: str) -> str:
    """Why a request failed, in a few words."""
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        told = body.get("message") or body.get("detail") or ""
        return f"HTTP {error.status_code} for {path.partition('?')[0]}{': ' if told else ''}{str(told)[:300]}"
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    cause = cause if isinstance(cause, Exception) else error
    return first_line(cause) or type(cause).__name__


def server_failure(key: str, url: str, trouble: object) -> UserError:
    """What the user reads where the server fails in the middle of a run."""
    return UserError(
        f"{key}={url}: the vLLM server failed ({trouble}); its log says why; start it again and give the same command: "
        "the run goes on from its last checkpoint"
    )
