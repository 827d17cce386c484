"""Find which model was trained from which, as the configurations of runs and adapters say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def lineage(run: Path, settings: dict[str, Any]) -> list[str]:
    """Return the model that a run evaluated or made, the model that it was trained from, and so on.

    A run directory stands for its weights.
    """
    model = str(settings["model.path"])
    return _descent(model) if settings["algo.name"] == "eval" else [str(run), *_descent(model)]


def _descent(model: str) -> list[str]:
    found: list[str] = []
    while (place := _run_of(model) or _absolute(model)) not in found:
        found.append(place)
        parent = _parent(place)
        if parent is None:
            break
        model = parent
    return found


def _absolute(model: str) -> str:
    """Return a folder's absolute path, however it was named; a hub id unchanged."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def _run_of(model: str) -> str | None:
    """Return the run directory that holds a checkpoint, or None."""
    folder = Path(model).expanduser()
    places = (place for place in (folder, *folder.parents[:2]) if (place / "status.json").is_file())
    return next((str(place.absolute()) for place in places if (place / "config.yaml").is_file()), None)


def _parent(place: str) -> str | None:
    """Return the model that the weights at `place` were trained from; None if nothing there says so."""
    folder = Path(place).expanduser()
    if (folder / "status.json").is_file() and (folder / "config.yaml").is_file():
        return str(OmegaConf.load(folder / "config.yaml").model.path)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        return None if base is None else str(base)
    return None
