"""The identity of a run: equal values of the configuration mean the same run, wherever it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.config.load import operational_keys
from agentrl.config.schema import Config

NOT_IN_IDENTITY = tuple(operational_keys())  # keys and groups that do not change the result
# Another address means another server, except in `agentrl resume`, which may say that the server has moved.
MAY_MOVE = ("judge.base_url", "algo.endpoint.base_url")


def config_hash(config: Config) -> str:
    """Hash the values that determine the result, to eight hexadecimal digits."""
    values = {key: value for key, value in flatten(config.model_dump()).items() if is_in_identity(key)}
    if config.bench.draw > 1:
        values["draw"] = config.bench.draw
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def run_path(config: Config) -> Path:
    """Return `<runs_dir>/<name>/<id>`. The id is `run_id`, or is made from the seed and the configuration."""
    identifier = config.run_id or f"s{config.seed}-{config_hash(config)}"
    return Path(config.runs_dir).expanduser().absolute() / config.name / identifier


def changed_keys(first: Config, second: Config) -> list[str]:
    """Return the dotted keys that make two configurations different runs."""
    left, right = flatten(first.model_dump()), flatten(second.model_dump())
    keys = [key for key in {**left, **right} if left.get(key, "absent") != right.get(key, "absent")]
    return [key for key in keys if is_in_identity(key)]


def is_in_identity(key: str) -> bool:
    """Whether a dotted key determines the result of a run."""
    return key not in NOT_IN_IDENTITY and key.split(".")[0] not in NOT_IN_IDENTITY


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result
