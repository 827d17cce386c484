"""Finds conf/ and the options of a group, packaged or in the user's directory, and what each option builds on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from agentrl.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where it is, reads ten times faster
# In a wheel conf/ is inside the package; in a checkout it is beside the package.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def option_files(group: str, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Return the options of a group by name, each with its file. Files in `folders` (--config-dir) win."""
    found: dict[str, Path] = {}
    for folder in (*folders, CONF):
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def read_option(file: Path) -> dict[str, Any]:
    """Read an option's file. Raises UserError if it is not a YAML mapping."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), LOADER) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold keys and values")
    return content


def sentence_of(file: Path) -> str:
    """Return the first sentence of the comment at the top of an option's file, which says what the option is."""
    comment: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment += [] if line.startswith("# @package") else [line.lstrip("# ").strip()]
    sentence = f"{' '.join(comment)} ".partition(". ")[0].strip()
    return f"{sentence}." if sentence else ""


def lineage(group: str, option: str, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield an option, then the options of its group that its file's `defaults` name, nearest first.

    files: the options of the group (`option_files`).
    """
    waiting, seen = [option], set[str]()
    while waiting:
        name = waiting.pop(0)
        yield name
        if name in files and name not in seen:
            seen.add(name)
            entries = read_option(files[name]).get("defaults") or []
            waiting += [str(entry).removeprefix(f"/{group}/") for entry in entries if isinstance(entry, str)]
