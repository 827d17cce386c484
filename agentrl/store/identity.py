"""Which run a configuration describes: the same values make the same run, wherever it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.config.load import operational_keys
from agentrl.config.schema import Config

NOT_IN_IDENTITY = tuple(operational_keys())  # keys and groups that change where and how, not what
# A server elsewhere is another one, unless `agentrl resume` says that it moved.
MAY_MOVE = ("judge.base_url", "algo.endpoint.base_url")


def config_hash(config: Config) -> str:
    """Eight hexadecimal digits of what determines the result: equal for the same run, wherever it is stored."""
    values = {key: value for key, value in flat(config.model_dump()).items() if in_identity(key)}
    if config.bench.draw > 1:
        values["draw"] = config.bench.draw
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def run_path(config: Config) -> Path:
    """`<runs_dir>/<name>/<id>`; the id is `run_id`, else derived from seed and configuration."""
    identifier = config.run_id or f"s{config.seed}-{config_hash(config)}"
    return Path(config.runs_dir).expanduser().absolute() / config.name / identifier


def changed_keys(first: Config, second: Config) -> list[str]:
    """Dotted keys that make two configurations different runs, for a message."""
    left, right = flat(first.model_dump()), flat(second.model_dump())
    keys = [key for key in {**left, **right} if left.get(key, "absent") != right.get(key, "absent")]
    return [key for key in keys if in_identity(key)]


def in_identity(key: str) -> bool:
    """Whether a dotted key determines the result of a run."""
    return key not in NOT_IN_IDENTITY and key.split(".")[0] not in NOT_IN_IDENTITY


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result
