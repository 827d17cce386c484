"""Finds the keys whose value is a path. A key declares it with `place=` (key.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from agentrl.config.accelerate_files import READY
from agentrl.config.key import Group, Place, extra, group_in, variants
from agentrl.config.schema import Config


@dataclass(frozen=True)
class ConfigPath:
    """A path in a configuration: attribute `name` of `group`."""

    key: str  # dotted
    group: Group
    name: str
    place: Place

    @property
    def value(self) -> str:
        return str(getattr(self.group, self.name))


def paths_of(group: Group, prefix: str = "") -> Iterator[ConfigPath]:
    """Yield the paths that the keys of `group` hold; a key that is null holds none."""
    for name, item in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            yield from paths_of(value, f"{prefix}{name}.")
        elif value is not None and (place := extra(item)["place"]) and (place != "settings" or value not in READY):
            yield ConfigPath(f"{prefix}{name}", group, name, place)


@cache
def place_names() -> dict[str, Place]:
    """The last part of each key whose value is a path -> what is at the path."""
    return dict(_declared(Config))


def _declared(cls: type[Group]) -> Iterator[tuple[str, Place]]:
    for name, item in cls.model_fields.items():
        if place := extra(item)["place"]:
            yield name, place
        below = group_in(item.annotation)
        for group in dict.fromkeys(variants(item).values()) or ([below] if below else []):
            yield from _declared(group)
