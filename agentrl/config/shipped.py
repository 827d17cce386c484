"""Where conf/ lies, which options a group has, packaged or in a directory of the user's, and what each builds on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from agentrl.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# The wheel carries conf/ inside the package; in a checkout it lies beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def option_files(group: str, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The options of a group by name, each with its file; those of `folders` (--config-dir) come first."""
    found: dict[str, Path] = {}
    for folder in (*folders, CONF):
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def read_option(file: Path) -> dict[str, Any]:
    """The content of a group's file. Raises UserError where it is no YAML mapping."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold keys and values")
    return content


def sentence_of(file: Path) -> str:
    """What an option is: the first sentence of the comment that its file begins with; empty without one."""
    comment: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment += [] if line.startswith("# @package") else [line.lstrip("# ").strip()]
    sentence = f"{' '.join(comment)} ".partition(". ")[0].strip()
    return f"{sentence}." if sentence else ""


def lineage(group: str, option: str, folders: Sequence[Path]) -> Iterator[str]:
    """An option of the user's, then those of its group that its file's `defaults` name, nearest first.

    A packaged option stands for itself.
    """
    files, waiting = option_files(group, folders), [option]
    while waiting:
        name = waiting.pop(0)
        yield name
        if name in files and not files[name].is_relative_to(CONF):
            entries = read_option(files.pop(name)).get("defaults") or []
            waiting += [str(entry).removeprefix(f"/{group}/") for entry in entries if isinstance(entry, str)]
