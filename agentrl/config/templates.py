"""Resolves `model.chat_template`: our own template, one that TRL ships, or a file."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError

from agentrl.config.checks import require
from agentrl.config.meanings import suggest
from agentrl.core.errors import UserError, first_line

CHATML_TOOLS = "chatml_tools"
OFFER = f"set model.chat_template={CHATML_TOOLS}, or name another template (docs/models.md)"
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
    """Raise UserError if the key's value is neither a name nor a file, or if the file is not Jinja."""
    if value is None or value in template_names():
        return
    key, place = "model.chat_template", Path(value).expanduser()
    rule = f"is neither a Jinja file nor the name of a template{suggest(value, template_names())}"
    require(place.is_file(), key, value, rule)
    try:
        # transformers' own tag marks what is trained; jinja2 alone does not know it
        text = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", place.read_text(encoding="utf-8"))
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={value}: is not text in UTF-8; give a Jinja file") from error
    except TemplateSyntaxError as error:
        raise UserError(
            f"{key}={value}: line {error.lineno} is not Jinja: {first_line(error)}; correct the file"
        ) from error
