"""Makes the typed `Config` from plain values. Refuses unknown keys, wrong types, missing keys and impossible values.

The command line passes the values that Hydra composed. The worker reads `config.yaml` of its run directory. This module
and its imports know neither Hydra nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from pydantic import ValidationError

from agentrl.config.key import Group, extra, group_in, sentence, variants
from agentrl.config.meanings import REMOVED
from agentrl.config.refusals import refusal
from agentrl.config.schema import VARIANTS, Config
from agentrl.config.shipped import CONF, read_option
from agentrl.core.errors import UserError, first_line

GENERATED = ("minihop", "minihif")  # benches to which older versions gave an unused `path`
RENAMED = {"mended": "corrected"}  # older names of the choices of bench.rules and bench.reward_rules
# Keys without which older versions trained, besides operational ones: they change no result except by rounding.
ADDED = ("rollout.ahead", "trainer.tokens_per_batch", "trainer.engine", "model.chat_template", "model.quantize")
# Keys that methods and benches lacked, and the values with which they act as they did.
ADDED_TO_OPTIONS: dict[str, dict[str, Any]] = {
    "algo": {
        "advantage.signs": "earned",
        "q_from": "key",
        "schedule.level_from": "updates",
        "schedule.call_from": "updates",
        "dual_clip": None,
        "conditioned": {"advantages": "all", "floor": None, "weight": "one"},
        "constraints": [],
    },
    "bench": {"free": 0.0, "forbid": None, "encoder": "sentence-transformers/all-MiniLM-L6-v2"},
}
AnyGroup = TypeVar("AnyGroup", bound=Group)


def typed_config(raw: DictConfig | Mapping[str, Any]) -> Config:
    """Make the typed configuration from composed values. Resolves interpolations. Raises UserError."""
    try:
        node = raw if isinstance(raw, DictConfig) else OmegaConf.create(dict(raw))
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError("the configuration is not a mapping of keys to values")
    return make_group(Config, {str(key): value for key, value in values.items()})


def make_group(cls: type[AnyGroup], values: Mapping[str, Any]) -> AnyGroup:
    """Make a group of keys from `values`, converted to the declared types. Raises UserError for a wrong value."""
    try:
        return cls.model_validate(_given(values))
    except ValidationError as error:
        raise refusal(error, cls, [key for key, _, _ in all_keys()] if cls is Config else []) from error


def _given(values: Any) -> Any:
    """Return the values without the keys that have no value yet (`path: ???`)."""
    if isinstance(values, Mapping):
        return {key: _given(value) for key, value in values.items() if value != "???"}
    return [_given(value) for value in values] if isinstance(values, list) else values


def load_config(path: str | Path) -> Config:
    """Read the configuration of a run directory, or of a file `config.yaml`. Raises UserError."""
    return typed_config(saved_values(path))


def saved_values(path: str | Path) -> DictConfig:
    """Read the values of such a file, and update those of older versions. Raises UserError."""
    file = Path(path)
    file = file / "config.yaml" if file.is_dir() else file
    try:
        raw = OmegaConf.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; give a run directory that agentrl made") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read as YAML: {first_line(error)}") from error
    if not isinstance(raw, DictConfig):
        raise UserError(f"{file} does not hold a configuration")
    update_old_values(raw)
    return raw


def update_old_values(values: MutableMapping[Any, Any]) -> None:
    """Remove the keys that only older versions have, and rename the keys and choices with another name there.

    A key that they did not have gets the value of conf/config.yaml if it changes no result.
    """
    bench, hardware = values.get("bench"), values.get("hardware")
    shared, added = read_option(CONF / "config.yaml"), {*ADDED, *operational_keys()}
    if isinstance(hardware, Mapping) and "vllm" in hardware:
        moved = {"mode": hardware["vllm"], "url": hardware.get("vllm_url", "http://localhost:8000")}
        values["vllm"] = shared["vllm"] | moved
    for group, given in shared.items():
        if not isinstance(given, Mapping) or not isinstance(node := values.get(group), MutableMapping):
            continue
        for name, value in given.items():
            if {group, f"{group}.{name}"} & added:
                node.setdefault(name, value)
    for group, lacking in ADDED_TO_OPTIONS.items():
        if isinstance(node := values.get(group), MutableMapping) and node.get("name") in VARIANTS[group]:
            _set_missing(node, lacking, [key for key, _, _ in keys_of(VARIANTS[group][node["name"]])])
    metric = values.pop("objective", None)
    values.setdefault("sweep", shared["sweep"] | {"metric": metric})
    generated = isinstance(bench, Mapping) and bench.get("name") in GENERATED
    for key in (*REMOVED, *(["bench.path"] if generated else [])):
        group, _, name = key.rpartition(".")
        if isinstance(node := values.get(group), MutableMapping):
            node.pop(name, None)
    if isinstance(bench, MutableMapping):
        for name in ("rules", "reward_rules"):
            if (old := bench.get(name)) in RENAMED:
                bench[name] = RENAMED[old]


def _set_missing(node: MutableMapping[Any, Any], values: Mapping[str, Any], known: list[str]) -> None:
    """Set those of the dotted keys that the option knows and that have no value."""
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        within = node.get(group) if group else node
        if isinstance(within, MutableMapping) and any(one == key or one.startswith(f"{key}.") for one in known):
            within.setdefault(name, value)


def all_keys() -> Iterator[tuple[str, Any, str]]:
    """Yield every key with its type and sentence, in the order of the schema, including those of each variant."""
    yield from keys_of(Config)


def operational_keys(cls: type[Group] = Config, prefix: str = "") -> list[str]:
    """List the keys, and whole groups of keys, that do not change the result of a run (see `key`)."""
    found: list[str] = []
    for name, item in cls.model_fields.items():
        path, below = f"{prefix}{name}", group_in(item.annotation)
        if extra(item)["operational"]:
            found.append(path)
            continue
        for group in dict.fromkeys(variants(item).values()) or ([below] if below else []):
            found += operational_keys(group, f"{path}.")
    return list(dict.fromkeys(found))


def keys_of(cls: type[Group], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the keys of one class as `all_keys` does, with `prefix` before their names."""
    for name, item in cls.model_fields.items():
        path, kind = f"{prefix}{name}", item.annotation
        if extra(item)["record"]:
            continue
        if found := variants(item):
            for variant in dict.fromkeys(found.values()):
                yield from keys_of(variant, f"{path}.")
        elif kind is not (below := group_in(kind)):  # a value, or a list of groups
            yield path, kind, sentence(item)
            if below is not None:
                yield from keys_of(below, f"{path}.N.")
        elif below is not None:
            yield from keys_of(below, f"{path}.")
