"""From plain values to the typed `Config`: unknown keys, wrong types, missing keys and impossible values are refused.

The command line hands over what Hydra composed; the worker reads `config.yaml` of its run directory. Neither this
module nor anything it imports knows Hydra or torch.
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
from agentrl.config.schema import Config
from agentrl.core.errors import UserError

GENERATED = ("minihop", "minihif")  # benches that older versions gave an unused `path`
RENAMED = {"mended": "corrected"}  # what bench.rules and bench.reward_rules were called
AnyGroup = TypeVar("AnyGroup", bound=Group)


def typed_config(raw: DictConfig | Mapping[str, Any]) -> Config:
    """The typed configuration of composed values, interpolations resolved. Raises UserError."""
    try:
        node = raw if isinstance(raw, DictConfig) else OmegaConf.create(dict(raw))
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError("the configuration is not a mapping of keys to values")
    return checked(Config, {str(key): value for key, value in values.items()})


def checked(cls: type[AnyGroup], values: Mapping[str, Any]) -> AnyGroup:
    """A group of keys with `values`, converted to the declared types. Raises UserError for the first that is wrong."""
    try:
        return cls.model_validate(_given(values))
    except ValidationError as error:
        raise refusal(error, cls, [key for key, _, _ in all_keys()] if cls is Config else []) from error


def _given(values: Any) -> Any:
    """The values without the keys that have none yet (`path: ???`)."""
    if isinstance(values, Mapping):
        return {key: _given(value) for key, value in values.items() if value != "???"}
    return [_given(value) for value in values] if isinstance(values, list) else values


def load_config(path: str | Path) -> Config:
    """The configuration of a run directory, or of a `config.yaml` itself. Raises UserError."""
    return typed_config(saved_values(path))


def saved_values(path: str | Path) -> DictConfig:
    """The values that such a file holds, brought up to date where an older version wrote them. Raises UserError."""
    file = Path(path)
    file = file / "config.yaml" if file.is_dir() else file
    try:
        raw = OmegaConf.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; give a run directory that agentrl made") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, DictConfig):
        raise UserError(f"{file} does not hold a configuration")
    update_old_values(raw)
    return raw


def update_old_values(values: MutableMapping[Any, Any]) -> None:
    """Take out the keys that older versions had, and rename the choices that they called otherwise."""
    bench = values.get("bench")
    generated = isinstance(bench, Mapping) and bench.get("name") in GENERATED
    for key in (*REMOVED, *(["bench.path"] if generated else [])):
        group, _, name = key.rpartition(".")
        if isinstance(node := values.get(group), MutableMapping):
            node.pop(name, None)
    if isinstance(bench, MutableMapping):
        for name in ("rules", "reward_rules"):
            if (old := bench.get(name)) in RENAMED:
                bench[name] = RENAMED[old]


def all_keys() -> Iterator[tuple[str, Any, str]]:
    """Every leaf key with its type and sentence, in the schema's order, those of each variant included."""
    yield from keys_of(Config)


def operational_keys(cls: type[Group] = Config, prefix: str = "") -> list[str]:
    """Keys, and whole groups of keys, that say where or how a run is made, not what."""
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
    """The same for one class, below `prefix`."""
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
