"""Find a checkpoint: by hub id, in a local directory, in a GGUF file, or in this package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from agentrl.core.errors import UserError
from agentrl.core.gguf import cache_folder, is_gguf
from agentrl.models.gguf import checkpoint_of

BUILTIN = {"builtin:tiny": "tiny", "builtin:tiny_hif": "tiny_hif"}
ADAPTER = "adapter_config.json"


def checkpoint_path(path: str) -> str:
    """Return the hub id or directory to load from. `builtin:` names are in the package.

    The first call for a GGUF file makes a checkpoint from it, which takes a while.

    Raises:
        UserError: no such built-in model, no such directory or GGUF file, or no checkpoint in it.
    """
    if path in BUILTIN:
        return str(files("agentrl.tiny") / BUILTIN[path])
    if path.startswith("builtin:"):
        raise UserError(f"model.path={path}: no such built-in model; choose from {', '.join(BUILTIN)}")
    if is_gguf(path):
        return str(checkpoint_of(Path(path)))
    local = Path(path).expanduser()
    if local.exists():
        if not any((local / name).is_file() for name in ("config.json", ADAPTER)):
            raise UserError(f"model.path={path}: no config.json there; name a checkpoint directory")
        return str(local.absolute())  # an adapter stores this path, and may be read from another directory
    if local.parent == cache_folder():
        raise UserError(
            f"model.path={path}: this checkpoint was made from a GGUF file and is gone; make it again: "
            "python -m agentrl.models.gguf FILE.gguf"
        )
    if path.startswith((".", "/", "~")):
        raise UserError(f"model.path={path}: no such directory; name an existing checkpoint or a hub id")
    return path
