"""A bench of sums, played through a chat server that a test scripts."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrl.config.schema import Config
from agentrl.core.bench import Score, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding
from agentrl.core.stop import StopRequest
from agentrl.core.trajectory import ToolCall
from agentrl.evaluation.evaluate import evaluate
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


OVERFLOW = "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens."


def asks(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request."""
    return {key: value for key, value in body.items() if key not in ("messages", "model", "tools", "stream")}
