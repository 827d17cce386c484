"""What the keys of a judge may hold."""

from __future__ import annotations

import math
import re
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.config.checks import require
from agentrl.config.judges import DistilledJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config

JUDGE_CHOICES: dict[str, tuple[str, ...]] = {"judge.dtype": ("float32", "bfloat16", "float16")}


def validate_judge(config: Config) -> None:
    judge = config.judge
    if isinstance(judge, OpenAIJudge | LocalJudge):
        for key in ("system_rubric", "user_rubric"):
            path = getattr(judge, key)
            found = path is None or Path(path).expanduser().is_file()
            require(found, f"judge.{key}", path, "no such file; set null for the packaged rubric")
        require(judge.max_tokens >= 1, "judge.max_tokens", judge.max_tokens, "must be at least 1")
        require(judge.parse_retries >= 0, "judge.parse_retries", judge.parse_retries, "must be 0 or more")
    if isinstance(judge, LocalJudge | DistilledJudge):
        require(judge.batch >= 1, "judge.batch", judge.batch, "must be at least 1")
    if isinstance(judge, DistilledJudge):
        made = (Path(judge.path).expanduser() / "distilled.json").is_file()
        require(made, "judge.path", judge.path, "holds no distilled.json; make one with agentrl judge distill")
    if isinstance(judge, OpenAIJudge):
        _openai(judge)


def _openai(judge: OpenAIJudge) -> None:
    variable = judge.api_key_env
    # The value is not repeated: whoever pastes a key here must not find it in a log.
    named = variable is None or re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable) is not None
    require(named, "judge.api_key_env", "***", "the name of an environment variable in capitals, never the key itself")
    address = urlsplit(judge.base_url)
    plain = address.scheme in ("http", "https") and bool(address.hostname) and not address.query
    require(
        plain and "@" not in address.netloc,
        "judge.base_url",
        "***" if "@" in judge.base_url else judge.base_url,
        "must be http(s)://host[:port]/path, without a password or a query",
    )
    warm = judge.temperature is None or 0 <= judge.temperature < math.inf
    require(warm, "judge.temperature", judge.temperature, "must be 0 or more, or null")
    for key in ("concurrency", "down_after"):
        require(getattr(judge, key) >= 1, f"judge.{key}", getattr(judge, key), "must be at least 1")
    require(judge.retries >= 0, "judge.retries", judge.retries, "must be 0 or more")
    require(0 < judge.timeout < math.inf, "judge.timeout", judge.timeout, "must be above 0 seconds")
    rate = judge.requests_per_minute
    require(rate is None or 0 < rate < math.inf, "judge.requests_per_minute", rate, "must be above 0, or null")
    for key in ("price_prompt", "price_completion"):
        require(0 <= getattr(judge, key) < math.inf, f"judge.{key}", getattr(judge, key), "must be 0 or more")
    for key in ("max_cost", "max_total_tokens", "max_requests"):
        limit = getattr(judge, key)
        require(limit is None or 0 < limit < math.inf, f"judge.{key}", limit, "must be above 0, or null for no limit")
    priced = judge.price_prompt > 0 or judge.price_completion > 0
    require(
        judge.max_cost is None or priced,
        "judge.max_cost",
        judge.max_cost,
        "needs judge.price_prompt and judge.price_completion: without prices nothing costs anything",
    )
