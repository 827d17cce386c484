"""Lists every key with its options and its default. Reads the files of conf/ without composing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from agentrl.config.key import type_name
from agentrl.config.load import all_keys, keys_of
from agentrl.config.schema import VARIANTS, Config
from agentrl.config.shipped import CONF, option_files, read_option

SCALES = ("algo", "bench", "model", "hardware", "judge", "tracker", "reward", "anneal", "dual", "model/lora")
FEW = 4  # from this many different defaults on, they are not written out


@dataclass(frozen=True)
class Key:
    """A key as the reference lists it. `owners` are the options of its group that have it; empty if all have it."""

    name: str
    kind: str
    doc: str
    owners: tuple[str, ...]

    @property
    def section(self) -> str:
        return self.name.split(".")[0] if "." in self.name else ""


@cache
def keys() -> list[Key]:
    """List every key. A key that differs between options of its group is listed once for each meaning."""
    found: list[Key] = []
    everything = list(all_keys())
    for section in Config.model_fields:
        if section not in VARIANTS:
            shared = [entry for entry in everything if _of(entry[0], section)]
            found += [Key(name, type_name(kind), doc, ()) for name, kind, doc in shared]
            continue
        owners: dict[tuple[str, str, str], list[str]] = {}
        for option, cls in VARIANTS[section].items():
            for name, kind, doc in keys_of(cls, f"{section}."):
                owners.setdefault((name, type_name(kind), doc), []).append(option)
        order = list(dict.fromkeys(name for name, _, _ in owners))
        merged = sorted(owners.items(), key=lambda entry: order.index(entry[0][0]))
        found += [Key(*key, () if len(names) == len(VARIANTS[section]) else tuple(names)) for key, names in merged]
    return found


def _of(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def default_of(key: Key) -> str:
    """Return the default of a key, and other defaults that options bring: `1e-06; 5e-06 with hipo, dpo`."""
    shared = _flat(_main())
    by_option: dict[tuple[str, str], Any] = {}
    for (group, option), values in _option_values().items():
        owned = group == key.section and group in VARIANTS and (not key.owners or option in key.owners)
        if key.name in values and (owned or group != key.section or group not in VARIANTS):
            by_option[group, option] = values[key.name]
    base = next((by_option[choice] for choice in chosen_options() if choice in by_option), shared.get(key.name, "???"))
    if base == "???" and key.name not in shared and by_option:
        base = next(iter(by_option.values()))
    other: dict[str, list[str]] = {}
    for (_, option), value in by_option.items():
        if value != base:
            other.setdefault(format_typed(value), []).append(option)
    if len(other) >= FEW:
        return f"{format_typed(base)}; others by option"
    return "; ".join([format_typed(base), *(f"{value} with {', '.join(options)}" for value, options in other.items())])


def format_typed(value: Any) -> str:
    """Format a value as a user types it. A key that must be given has no default."""
    if value == "???":
        return "none: must be given"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


@cache
def _main() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in ("defaults", "hydra")}


@cache
def chosen_options() -> list[tuple[str, str]]:
    """List the default options of the groups, as (group, option)."""
    content = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return [(group, str(option)) for entry in entries for group, option in entry.items()] + [("model/lora", "off")]


@cache
def _option_values() -> Mapping[tuple[str, str], dict[str, Any]]:
    """Read the flat values of every option, including those of the options that it builds on."""
    return {(group, option): dict(_values(group, option)) for group in SCALES for option in option_files(group)}


def _values(group: str, option: str) -> Iterator[tuple[str, Any]]:
    file = option_files(group)[option]
    content = read_option(file)
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry in option_files(group):
            yield from _values(group, entry)
        elif isinstance(entry, dict):  # e.g. `override /dual: fixed`
            for name, value in entry.items():
                other = str(name).removeprefix("override ").strip().removeprefix("/")
                if other in ("dual", "anneal", "reward") and str(value) in option_files(other):
                    yield from _values(other, str(value))
    is_global = "@package _global_" in file.read_text(encoding="utf-8")
    yield from _flat(content, "" if is_global else f"{group.replace('/', '.')}.").items()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        result |= _flat(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return result
