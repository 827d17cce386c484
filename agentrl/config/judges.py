"""Types and documentation of the keys of each judge (group `judge`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional  # omegaconf reads Optional, not X | None

from agentrl.config.key import key


@dataclass
class ProgramJudge:
    name: str = key("Judge.")


@dataclass
class OpenAIJudge:
    name: str = key("Judge.")
    base_url: str = key("Address of an OpenAI-compatible server, up to and including /v1.")
    model: str = key("Model name as the server knows it.")
    api_key_env: Optional[str] = key("Environment variable that holds the key; null for servers that want none.")
    temperature: Optional[float] = key("Sampling temperature of the judge; null leaves it to the server.")
    max_tokens: int = key("Longest reply in tokens; reasoning judges need room to think.")
    system_rubric: Optional[str] = key("File with the rubric behind r_sys; null takes the packaged one.")
    user_rubric: Optional[str] = key("File with the rubric behind r_user; null takes the packaged one.")
    parse_retries: int = key("Further tries for a reply that cannot be read; then the verdict is missing, never 0.")
    concurrency: int = key("Calls on the wire at once.")
    requests_per_minute: Optional[float] = key("Rate limit of one process; null is none.")
    timeout: float = key("Seconds a call may take.")
    retries: int = key("Further tries of a call that failed (429, 5xx, timeout, cut off), waiting twice as long each.")
    down_after: int = key("Calls in a row that fail for good before the run stops: the judge is down.")
    cache: Optional[str] = key("File of verdicts, shared by runs; null is judge.sqlite in runs_dir.")
    price_prompt: float = key("Price of a million prompt tokens, for the cost in logs and max_cost.")
    price_completion: float = key("Price of a million completion tokens.")
    max_cost: Optional[float] = key("Budget of a run in the currency of the prices; null is none.")
    max_total_tokens: Optional[int] = key("Budget of a run in tokens, prompt and completion; null is none.")
    max_requests: Optional[int] = key("Budget of a run in answered calls; null is none.")


@dataclass
class LocalJudge:
    name: str = key("Judge.")
    path: str = key("Hub id or directory of an instruct model that judges in the worker's own process.")
    revision: Optional[str] = key("Hub revision; null takes the default branch.")
    dtype: str = key("Weights: float32, bfloat16 or float16.")
    batch: int = key("Responses judged together.")
    max_tokens: int = key("Longest reply in tokens.")
    system_rubric: Optional[str] = key("File with the rubric behind r_sys; null takes the packaged one.")
    user_rubric: Optional[str] = key("File with the rubric behind r_user; null takes the packaged one.")
    parse_retries: int = key("Further tries for a reply that cannot be read; then the verdict is missing, never 0.")
    cache: Optional[str] = key("File of verdicts, shared by runs; null is judge.sqlite in runs_dir.")


@dataclass
class DistilledJudge:
    name: str = key("Judge.")
    path: str = key("Directory that `agentrl judge distill` wrote.")
    batch: int = key("Responses scored together.")


@dataclass
class Distillation:
    """Keys of `agentrl judge distill`: a command of its own, so its values stand here and not in conf/."""

    cache: str = key("File of verdicts to learn from: the judge.cache of a run.")
    out: str = key("Directory to write the reward model to; must not exist yet.")
    judge_model: Optional[str] = field(
        default=None,
        metadata={
            "doc": "Judge to learn from, where the cache holds several: its model's name, or MODEL#DIGITS as shown."
        },
    )
    base: str = field(
        default="builtin:tiny", metadata={"doc": "Network to start from: whatever model= of a run may be."}
    )
    held_out: float = field(default=0.2, metadata={"doc": "Share of prompts on which agreement is measured."})
    epochs: float = field(default=5.0, metadata={"doc": "Passes over the training verdicts."})
    learning_rate: float = field(default=1e-4, metadata={"doc": "Peak learning rate of AdamW."})
    batch: int = field(default=16, metadata={"doc": "Verdicts of one update."})
    max_tokens: int = field(default=1024, metadata={"doc": "Longest input; prompts are cut before responses."})
    seed: int = field(default=0, metadata={"doc": "Seed of the division, the head and the order."})
    device: str = field(default="cpu", metadata={"doc": "cpu or cuda."})


JUDGES: dict[str, type] = {
    "program": ProgramJudge,
    "openai": OpenAIJudge,
    "local": LocalJudge,
    "distilled": DistilledJudge,
}

# How verdicts are fetched and paid for, not what they are: changing these resumes a run instead of making another.
OPERATIONAL = (
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
