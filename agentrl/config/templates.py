"""Resolves `model.chat_template`: our own template, one that TRL ships, or a file."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from agentrl.config.checks import require
from agentrl.config.meanings import suggest

CHATML_TOOLS = "chatml_tools"
TRAINING = "_training"  # ends the name of TRL's form of a template for training


@cache
def trl_templates() -> dict[str, Path]:
    """Return the files of TRL's templates by name. TRL itself is not imported, which would take seconds."""
    spec = find_spec("trl")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return {file.stem: file for folder in folders for file in sorted(Path(folder, "chat_templates").glob("*.jinja"))}


def template_names() -> list[str]:
    """List the names that the key knows."""
    return [CHATML_TOOLS, *(name for name in trl_templates() if not name.endswith(TRAINING))]


def check_template(value: str | None) -> None:
    """Raise UserError if the key's value is neither a name nor a file."""
    if value is None or value in template_names():
        return
    place, names = Path(value).expanduser(), template_names()
    rule = f"is neither a Jinja file nor a template{suggest(value, names)}; choose a file, or one of {', '.join(names)}"
    require(place.is_file(), "model.chat_template", value, rule)
