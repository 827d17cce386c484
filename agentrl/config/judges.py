"""Types and documentation of the keys of each judge (group `judge`)."""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.config.key import key


@dataclass
class ProgramJudge:
    name: str = key("Judge.")


@dataclass
class OpenAIJudge:
    name: str = key("Judge.")
    base_url: str = key("Address of an OpenAI-compatible server, up to and including /v1.")
    model: str = key("Model name as the server knows it.")
    api_key_env: str | None = key("Environment variable that holds the key; null for servers that want none.")
    temperature: float | None = key("Sampling temperature of the judge; null leaves it to the server.")
    max_tokens: int = key("Longest reply in tokens; reasoning judges need room to think.")
    system_rubric: str | None = key("File with the rubric behind r_sys; null takes the packaged one.")
    user_rubric: str | None = key("File with the rubric behind r_user; null takes the packaged one.")
    parse_retries: int = key("Further tries for a reply that cannot be read; then the verdict is missing, never 0.")
    concurrency: int = key("Calls on the wire at once.")
    requests_per_minute: float | None = key("Rate limit of one process; null is none.")
    timeout: float = key("Seconds a call may take.")
    retries: int = key("Further tries of a call that failed (429, 5xx, timeout, cut off), waiting twice as long each.")
    down_after: int = key("Calls in a row that fail for good before the run stops: the judge is down.")
    cache: str | None = key("File of verdicts, shared by runs; null is judge.sqlite in runs_dir.")
    price_prompt: float = key("Price of a million prompt tokens, for the cost in logs and max_cost.")
    price_completion: float = key("Price of a million completion tokens.")
    max_cost: float | None = key("Budget of a run in the currency of the prices; null is none.")
    max_total_tokens: int | None = key("Budget of a run in tokens, prompt and completion; null is none.")
    max_requests: int | None = key("Budget of a run in answered calls; null is none.")


@dataclass
class LocalJudge:
    name: str = key("Judge.")
    path: str = key("Hub id or directory of an instruct model that judges in the worker's own process.")
    revision: str | None = key("Hub revision; null takes the default branch.")
    dtype: str = key("Weights: float32, bfloat16 or float16.")
    batch: int = key("Responses judged together.")
    max_tokens: int = key("Longest reply in tokens.")
    system_rubric: str | None = key("File with the rubric behind r_sys; null takes the packaged one.")
    user_rubric: str | None = key("File with the rubric behind r_user; null takes the packaged one.")
    parse_retries: int = key("Further tries for a reply that cannot be read; then the verdict is missing, never 0.")
    cache: str | None = key("File of verdicts, shared by runs; null is judge.sqlite in runs_dir.")


@dataclass
class DistilledJudge:
    name: str = key("Judge.")
    path: str = key("Directory that `agentrl judge distill` wrote.")
    batch: int = key("Responses scored together.")


JUDGES: dict[str, type] = {
    "program": ProgramJudge,
    "openai": OpenAIJudge,
    "local": LocalJudge,
    "distilled": DistilledJudge,
}

# How verdicts are fetched and paid for, not what they are: changing these resumes a run instead of making another.
OPERATIONAL = (
    "base_url",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "timeout",
    "retries",
    "down_after",
    "cache",
    "price_prompt",
    "price_completion",
    "max_cost",
    "max_total_tokens",
    "max_requests",
)
