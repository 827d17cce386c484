"""From plain values to the typed `Config`: unknown keys, wrong types and missing keys are refused by name.

The command line hands over what Hydra composed; the worker reads `config.yaml` of its run directory. Neither this
module nor anything it imports knows Hydra or torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from agentrl.config.algos import ALGOS
from agentrl.config.benches import BENCHES
from agentrl.config.judges import JUDGES
from agentrl.config.meanings import OPTIONS, likely, suggest_key
from agentrl.config.schema import Config
from agentrl.core.errors import UserError

VARIANTS: dict[str, dict[str, type]] = {"algo": ALGOS, "bench": BENCHES, "judge": JUDGES}


def typed_config(raw: DictConfig | Mapping[str, Any]) -> Config:
    """The typed configuration of composed values, interpolations resolved. Raises UserError."""
    try:
        node = raw if isinstance(raw, DictConfig) else OmegaConf.create(dict(raw))
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError("the configuration is not a mapping of keys to values")
    config: Config = _build(Config, {str(key): value for key, value in values.items()}, "")
    return config


def load_config(path: str | Path) -> Config:
    """The configuration of a run directory, or of a `config.yaml` itself."""
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
    return typed_config(raw)


def all_keys() -> Iterator[tuple[str, Any, str]]:
    """Every leaf key with its type and sentence, in the schema's order, those of each variant included."""
    yield from keys_of(Config)


def keys_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The same for one class, below `prefix`."""
    hints = get_type_hints(cls)
    for item in fields(cls):
        path, kind = f"{prefix}{item.name}", hints[item.name]
        if not prefix and item.name in VARIANTS:
            for variant in dict.fromkeys(VARIANTS[item.name].values()):
                yield from keys_of(variant, f"{path}.")
        elif is_dataclass(kind):
            yield from keys_of(kind, f"{path}.")  # type: ignore[arg-type]
        elif (entry := _entry(kind)) is not None:
            yield path, kind, item.metadata["doc"]
            yield from keys_of(entry, f"{path}.N.")
        else:
            yield path, kind, item.metadata["doc"]


def suggest(word: str, known: list[str]) -> str:
    """' (did you mean X?)' for a close match among `known`, else what there is to choose from."""
    meant = [OPTIONS[word.lower()]] if OPTIONS.get(word.lower()) in known else None
    close = meant or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(known)}"


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    """An instance of dataclass `cls` from `values`, whose keys must be exactly its fields."""
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            if prefix and likely(str(name)) is None:
                raise UserError(f"unknown key {prefix}{name}{suggest(str(name), list(hints))}")
            known = [key for key, _, _ in all_keys()]
            raise UserError(f"unknown key {prefix}{name}{suggest_key(f'{prefix}{name}', known)}")
    built: dict[str, Any] = {}
    for item in fields(cls):
        path, kind = f"{prefix}{item.name}", hints[item.name]
        value = values.get(item.name, "???")
        if value == "???":
            raise UserError(f"{path} has no value; set {path}=... ({item.metadata['doc']})")
        if not prefix and item.name in VARIANTS:
            kind = _variant(path, value)
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise UserError(f"{path}={value!r} is not a group of keys; set the keys below it, e.g. {path}.name=...")
            built[item.name] = _build(kind, value, f"{path}.")
        elif (entry := _entry(kind)) is not None:
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise UserError(f"{path}={value!r} is not a list of groups of keys. {item.metadata['doc']}")
            built[item.name] = [_build(entry, one, f"{path}.{index}.") for index, one in enumerate(value)]
        else:
            built[item.name] = _leaf(cls, item.name, kind, value, path, item.metadata["doc"])
    return cls(**built)


def _entry(kind: Any) -> Any:
    """The dataclass that a list holds, where it holds one."""
    first = next(iter(getattr(kind, "__args__", ())), None)
    return first if getattr(kind, "__origin__", None) is list and is_dataclass(first) else None


def _variant(path: str, value: Any) -> type:
    name = value.get("name") if isinstance(value, dict) else value
    if name not in VARIANTS[path]:
        raise UserError(f"{path}.name={name!r} is not a known {path}{suggest(str(name), list(VARIANTS[path]))}")
    return VARIANTS[path][str(name)]


def _leaf(cls: Any, name: str, kind: Any, value: Any, path: str, doc: str) -> Any:
    """`value` as OmegaConf converts it to the declared type (an int is a float, "3" is an int, 1.5 is not)."""
    node = OmegaConf.structured(cls)
    if isinstance(value, bool) and type_name(kind).startswith("str"):
        value = "on" if value else "off"  # which YAML reads as truth values where they are not quoted
    try:
        node[name] = value
        converted = node[name]
        composite = isinstance(converted, ListConfig | DictConfig)
        return OmegaConf.to_container(converted) if composite else converted
    except OmegaConfBaseException as error:
        raise UserError(f"{path}={value!r} must be of type {type_name(kind)}. {doc}") from error


def type_name(kind: Any) -> str:
    """A declared type in words: `int`, `list of float`, `mapping`, `str or null`."""
    if getattr(kind, "__origin__", None) is dict:
        return "mapping"
    arguments = [argument for argument in getattr(kind, "__args__", ()) if argument is not type(None)]
    if arguments and len(arguments) < len(kind.__args__):  # Optional
        return f"{type_name(arguments[0])} or null"
    if arguments:
        return f"list of {type_name(arguments[0])}"
    return getattr(kind, "__name__", str(kind))
