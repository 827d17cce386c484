"""The keys of each judge (group `judge`), and those of `agentrl judge distill`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from agentrl.config.checks import is_web_address
from agentrl.config.key import Group, Holds, key

Dtype = Literal["float32", "bfloat16", "float16"]
MAX_TOKENS = "Longest reply in tokens; reasoning judges need room to think."
SYSTEM_RUBRIC = "File with the rubric of r_sys; null takes the packaged one."
USER_RUBRIC = "File with the rubric of r_user; null takes the packaged one."
PARSE_RETRIES = "Further tries for a reply that cannot be read. After them the verdict is missing, never 0."
CACHE = "File of verdicts, shared by runs; null takes judge.sqlite in runs_dir."


class ProgramJudge(Group):
    name: str = key("Judge.")


class OpenAIJudge(Group):
    name: str = key("Judge.")
    base_url: Annotated[
        str,
        Holds(
            lambda url: is_web_address(url) and not urlsplit(url).query and "@" not in urlsplit(url).netloc,
            "must be http(s)://host[:port]/path, without a password or a query",
        ),
    ] = key("Address of an OpenAI-compatible server, up to and including /v1.")
    model: str = key("Model name as the server knows it.")
    api_key_env: Annotated[
        str | None,
        Holds(
            lambda name: name is None or re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) is not None,
            "must be the name of an environment variable in capitals, never the key itself",
        ),
    ] = key(  # hidden: a user may paste the key itself, which must not appear in a log
        "Environment variable that holds the key; null for a server without a key.", hidden=True, operational=True
    )
    temperature: float | None = key("Sampling temperature of the judge; null leaves it to the server.", ge=0)
    max_tokens: int = key(MAX_TOKENS, ge=1)
    system_rubric: str | None = key(SYSTEM_RUBRIC, place="settings")
    user_rubric: str | None = key(USER_RUBRIC, place="settings")
    parse_retries: int = key(PARSE_RETRIES, ge=0)
    concurrency: int = key("Number of calls at the same time.", ge=1, operational=True)
    requests_per_minute: float | None = key("Rate limit of one process; null sets no limit.", gt=0, operational=True)
    timeout: float = key("Seconds that a call may take.", gt=0, operational=True)
    retries: int = key(
        "Further tries of a failed call (429, 5xx, timeout, cut off); each pause is twice as long as the one before.",
        ge=0,
        operational=True,
    )
    down_after: int = key(
        "Failed calls in a row after which the judge counts as down and the run stops; ten times as many that the "
        "server refuses.",
        ge=1,
        operational=True,
    )
    cache: str | None = key(CACHE, operational=True, place="written")
    price_prompt: float = key(
        "Price of a million prompt tokens, for max_cost and the cost in logs.", ge=0, operational=True
    )
    price_completion: float = key("Price of a million completion tokens.", ge=0, operational=True)
    max_cost: float | None = key(
        "Budget of a run in the currency of the prices; null sets no limit.",
        gt=0,
        hint=" for no limit",
        operational=True,
    )
    max_total_tokens: int | None = key(
        "Budget of a run in prompt and completion tokens; null sets no limit.",
        gt=0,
        hint=" for no limit",
        operational=True,
    )
    max_requests: int | None = key(
        "Budget of a run in answered calls; null sets no limit.", gt=0, hint=" for no limit", operational=True
    )


class LocalJudge(Group):
    name: str = key("Judge.")
    path: str = key("Hub id or directory of an instruct model. It judges in the worker's process.", place="weights")
    revision: str | None = key("Hub revision; null takes the default branch.")
    dtype: Dtype = key("Type of the weights.")
    batch: int = key("Responses judged together.", ge=1)
    max_tokens: int = key("Longest reply in tokens.", ge=1)
    system_rubric: str | None = key(SYSTEM_RUBRIC, place="settings")
    user_rubric: str | None = key(USER_RUBRIC, place="settings")
    parse_retries: int = key(PARSE_RETRIES, ge=0)
    cache: str | None = key(CACHE, operational=True, place="written")


class DistilledJudge(Group):
    name: str = key("Judge.")
    path: str = key("Directory that `agentrl judge distill` wrote.", place="weights")
    batch: int = key("Responses scored together.", ge=1)


class EmbeddingJudge(Group):
    name: str = key("Judge.")
    path: str = key("Directory or hub id of a sentence encoder.", place="weights")
    batch: int = key("Replies encoded together.", ge=1)


class Distillation(Group):
    """The keys of the command `agentrl judge distill`. It composes no configuration, so its defaults are here."""

    cache: str = key("File of verdicts to learn from: the judge.cache of a run.")
    out: Annotated[
        str, Holds(lambda out: not Path(out).expanduser().exists(), "must be a directory that does not exist yet")
    ] = key("Directory to write the reward model to.")
    judge_model: str | None = key(
        "Judge to learn from, if the cache holds several: the name of its model, or MODEL#DIGITS as shown.",
        default=None,
    )
    base: str = key("Model to start from, named as in model=...", default="builtin:tiny")
    held_out: float = key("Share of prompts on which agreement is measured.", default=0.2, gt=0, lt=1)
    epochs: float = key("Passes over the training verdicts.", default=5.0, gt=0)
    learning_rate: float = key("Peak learning rate of AdamW.", default=1e-4, gt=0)
    batch: int = key("Verdicts of one update.", default=16, gt=0)
    max_tokens: int = key("Longest input in tokens; prompts are cut before responses.", default=1024, ge=16)
    seed: int = key("Seed of the held-out prompts, of the new output layer and of the order.", default=0)
    device: Literal["cpu", "cuda"] = key("Device of the model.", default="cpu")


JUDGES: dict[str, type[Group]] = {
    "program": ProgramJudge,
    "openai": OpenAIJudge,
    "local": LocalJudge,
    "distilled": DistilledJudge,
    "embedding": EmbeddingJudge,
}
