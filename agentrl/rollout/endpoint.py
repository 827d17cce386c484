"""Episodes played by a model behind an OpenAI-compatible chat-completions endpoint, for evaluation only.

The server renders the conversation and samples; it reports how many tokens there were, not which. Calls that it did
not parse (servers differ) are read from the text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import openai

from agentrl.config.algos import Endpoint
from agentrl.config.schema import Config
from agentrl.errors import UserError, first_line
from agentrl.rollout.conversation import react
from agentrl.rollout.engine import Decoding, Episode
from agentrl.rollout.reading import assistant_message, read_turn
from agentrl.rollout.trl_loop import turns_of_calls
from agentrl.text import well_formed
from agentrl.trajectory import ToolCall, Trajectory

RETRIES = 6  # the client waits longer each time, and as long as Retry-After says
TIMEOUT_S = 600.0


class EndpointEngine:
    """Plays up to `concurrency` episodes at once; implements `RolloutEngine` without token ids."""

    def __init__(self, config: Config) -> None:
        endpoint: Endpoint = config.algo.endpoint
        self._endpoint, self._model, self._rollout = endpoint, config.model.path, config.rollout
        self._dead_tools = config.faults.dead_tools
        key = os.environ.get(endpoint.api_key_env)
        local = any(host in str(endpoint.base_url) for host in ("//localhost", "//127.0.0.1", "//[::1]"))
        if key is None and not local:
            raise UserError(
                f"the environment has no {endpoint.api_key_env}; export the endpoint's key, or name another variable "
                "with algo.endpoint.api_key_env=..."
            )
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key=key or "none", max_retries=RETRIES, timeout=TIMEOUT_S
        )

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """One trajectory per episode, in order. Raises UserError where the endpoint refuses or stays away."""
        settings = decoding or Decoding(self._rollout.temperature, self._rollout.top_p)
        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint") as pool:
            futures = [pool.submit(self._play, episode, settings) for episode in episodes]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def ask(self, messages: list[dict[str, str]]) -> str:
        """One greedy reply without tools, as text. Raises UserError as `rollout` does."""
        budget = self._rollout.max_turn_tokens or self._rollout.max_completion_tokens
        return self._complete(list(messages), [], budget, Decoding(0.0)).choices[0].message.content or ""

    def _play(self, episode: Episode, decoding: Decoding) -> Trajectory:
        """Turns as the token loop takes them: the last one allowed can only answer, the budget covers observations."""
        limits, task = self._rollout, episode.task
        read = partial(read_turn, environment=episode.environment, tools=bool(task.tools))
        said: list[dict[str, Any]] = []
        calls: list[ToolCall] = []
        sampled, first_prompt, used, truncated = 0, None, 0, False
        for turn in range(limits.max_turns):
            left = limits.max_completion_tokens - used
            if left < 1:
                truncated = True
                break
            budget = min(limits.max_turn_tokens or left, left)
            reply = self._complete(
                [*task.prompt, *wire_messages(said, self._endpoint.history)], task.tools, budget, decoding
            )
            choice, usage = reply.choices[0], reply.usage
            message = read_message(choice.message, read)
            if usage is not None:
                first_prompt = usage.prompt_tokens if first_prompt is None else first_prompt
                sampled += usage.completion_tokens
                used = usage.total_tokens - first_prompt
            said.append(message)
            if choice.finish_reason == "length":
                truncated = True
                break
            if turn == limits.max_turns - 1:
                break
            answers, over = react(episode.environment, message, calls, self._dead_tools)
            said += answers
            if over or not answers:
                break
        return Trajectory(
            task_id=task.id,
            prompt_ids=[],
            completion_ids=[],
            policy_mask=[],
            turn=[],
            component=[],
            messages=said,
            calls=turns_of_calls(calls, said),
            truncated=truncated,
            reported_tokens=sampled,
        )

    def _complete(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], budget: int, decoding: Decoding
    ) -> Any:
        chosen: dict[str, Any] = {"tools": tools} if tools else {}
        try:
            return self._client.chat.completions.create(
                model=self._model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=budget,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                **chosen,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{self._endpoint.base_url} refuses the key in {self._endpoint.api_key_env}: HTTP {error.status_code}"
            ) from None  # the original may quote the key
        except openai.APIStatusError as error:
            reason = first_line(error)[:300]
            raise UserError(
                f"{self._endpoint.base_url} answers HTTP {error.status_code} for model {self._model}: {reason}; "
                "what was evaluated is kept, the same command goes on"
            ) from error
        except openai.APIError as error:
            raise UserError(
                f"{self._endpoint.base_url} cannot be reached ({type(error).__name__}); what was evaluated is kept, "
                "and the same command goes on once the server answers"
            ) from error


def read_message(message: Any, read: Callable[[str], dict[str, Any]] = read_turn) -> dict[str, Any]:
    """An answer of the endpoint as an assistant message whose calls are parsed, by the server or by `read`.

    Arguments that are no JSON object stay text: executing them is an error the model gets to read.
    """
    made = [(call.function.name, _object(call.function.arguments)) for call in message.tool_calls or []]
    content = message.content or ""
    said = well_formed(assistant_message(content, made)) if made else read(content)
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if reasoning:
        said["reasoning_content"] = well_formed(reasoning)
    return said


def wire_messages(said: list[dict[str, Any]], history: str) -> list[dict[str, Any]]:
    """Messages as the protocol wants them back: calls with ids and arguments as text, results naming their call.

    With history "text" an assistant turn goes back as the text that Qwen's and Hermes' templates make of it: some
    servers, transformers' own among them, drop what a turn says beside its calls when the calls are structured.
    """
    sent: list[dict[str, Any]] = []
    open_ids: list[str] = []
    for message in said:
        copy = {key: message[key] for key in ("role", "content")}
        calls = [_as_text(call["function"]) for call in message.get("tool_calls") or []]
        if message["role"] == "tool":
            copy["tool_call_id"] = open_ids.pop(0)
        elif calls:
            open_ids = [f"call_{len(sent)}_{place}" for place in range(len(calls))]
            if history == "text":
                blocks = [f'{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}' for call in calls]
                copy["content"] += "".join(f"\n<tool_call>\n{block}\n</tool_call>" for block in blocks)
            else:
                copy["tool_calls"] = [
                    {"id": name, "type": "function", "function": call}
                    for name, call in zip(open_ids, calls, strict=True)
                ]
        sent.append(copy)
    return sent


def _as_text(function: dict[str, Any]) -> dict[str, str]:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": function["name"], "arguments": text}


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):  # executing the text is an error that the model gets to read
        return arguments
