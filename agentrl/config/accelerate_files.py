"""How the processes of a run share a model: the ready files of `hardware.accelerate_config`, and the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agentrl.config.shipped import PACKAGE
from agentrl.core.errors import UserError, first_line

DDP = "ddp"  # what torchrun gives without any file
FOLDER = PACKAGE / "config" / "accelerate"
READY = (DDP, *sorted(file.stem for file in FOLDER.glob("*.yaml")))
SHARDED = ("FSDP", "DEEPSPEED")  # accelerate's distributed_types that share a model out


def accelerate_file(given: str | None) -> Path | None:
    """Return the file that `accelerate launch` reads; None if torchrun starts the processes."""
    if given in (None, DDP):
        return None
    return FOLDER / f"{given}.yaml" if given in READY else Path(str(given)).expanduser()


def read_accelerate_file(file: Path) -> dict[str, Any]:
    """Read a file of accelerate. Raises UserError if it is not a YAML mapping."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: has no keys; make the file with `accelerate config`")
    return content


def distributed_type(given: str | None) -> str:
    """Return accelerate's name for the way that `hardware.accelerate_config` shares a model: NO, FSDP, DEEPSPEED ..."""
    file = accelerate_file(given)
    return "NO" if file is None else str(read_accelerate_file(file).get("distributed_type", "NO")).upper()
