"""Makes the typed `Config` from plain values. Refuses unknown keys, wrong types, missing keys and impossible values.

The command line passes the values that Hydra composed. The worker reads `config.yaml` of its run directory. This module
and its imports know neither Hydra nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from pydantic import ValidationError

from agentrl.config.key import UNKNOWN, Group, extra, group_in, sentence, variants
from agentrl.config.meanings import REMOVED
from agentrl.config.refusals import refusal
from agentrl.config.schema import Config
from agentrl.config.shipped import CONF, read_option
from agentrl.core.errors import UserError, first_line

GENERATED = ("minihop", "minihif")  # benches to which older versions gave an unused `path`
RENAMED = {"mended": "corrected"}  # older names of the choices of bench.rules and bench.reward_rules
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

    A key that they did not have gets the value with which they acted (`key(older=...)`), or the value of
    conf/config.yaml if it changes no result.
    """
    bench, hardware = values.get("bench"), values.get("hardware")
    shared, added = read_option(CONF / "config.yaml"), set(operational_keys())
    if isinstance(hardware, Mapping) and "vllm" in hardware:
        moved = {"mode": hardware["vllm"], "url": hardware.get("vllm_url", "http://localhost:8000")}
        values["vllm"] = shared["vllm"] | moved
    for group, given in shared.items():
        if not isinstance(given, Mapping) or not isinstance(node := values.get(group), MutableMapping):
            continue
        for name, value in given.items():
            if {group, f"{group}.{name}"} & added:
                node.setdefault(name, value)
    _set_older(Config, values)
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


def _set_older(cls: type[Group], node: MutableMapping[Any, Any]) -> None:
    """Set the keys of a class and of the groups below that have no value, where the declaration has `older`."""
    for name, item in cls.model_fields.items():
        below = group_in(item.annotation)
        if extra(item)["older"] is not UNKNOWN:
            node.setdefault(name, deepcopy(extra(item)["older"]))
        elif options := variants(item):
            chosen = node.get(name)
            if isinstance(chosen, MutableMapping) and chosen.get("name") in options:
                _set_older(options[chosen["name"]], chosen)
        elif below is not None and get_origin(item.annotation) is None:  # no list of groups
            inner = node.get(name, {})
            if isinstance(inner, MutableMapping):
                _set_older(below, inner)
                if inner:
                    node[name] = inner


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
