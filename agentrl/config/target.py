"""Resolves `model=NAME`: a preset, a run, a checkpoint, an adapter, a GGUF file or a hub id.

Reads only configuration files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from agentrl.config.checks import expand_home
from agentrl.config.meanings import suggest
from agentrl.config.shipped import option_files, read_option
from agentrl.core.errors import UserError
from agentrl.core.gguf import is_gguf

FAMILIES = {  # by config.json's model_type
    "qwen2": "qwen2.5",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3.5",
    "qwen3_5_text": "qwen3.5",
    "llama": "llama3",
    "phi3": "phi3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "lfm2": "lfm2",
}
INHERITED = ("family", "reasoning", "thinking", "dtype", "attn_implementation")  # keys taken from the run of a model


@dataclass(frozen=True)
class Named:
    """Values of the model's keys for a name that is not a preset.

    `scaled_as` is the preset that the model of a run was trained from, whose scaled-down values fit it.
    """

    values: dict[str, Any]
    scaled_as: str | None = None


def resolve_model(name: str, folders: Sequence[Path] = ()) -> str | Named:
    """Return the preset or the values that `name` means. `folders` hold the user's own presets (--config-dir).

    A run directory means its trained model (its `model/`). A directory inside a run takes keys of the run's model. A
    directory without config.json may hold an adapter, whose adapter_config.json names the base model.
    Raises UserError if the name means none of these.
    """
    presets = option_files("model", folders)
    if name in presets:
        return name
    place = Path(expand_home(name))
    if place.is_dir():
        return _of_directory(place.absolute(), name)
    if place.is_file() and is_gguf(name):
        return Named({"name": place.stem, "path": str(place.absolute()), "family": "other"})
    if place.exists():
        raise UserError(f"model={name} is a file; give the directory with config.json and the weights, or a GGUF file")
    if is_gguf(name) and name.count("/") != 1:
        raise UserError(f"model={name}: no such file; correct the path")
    for preset, file in presets.items():
        if read_option(file).get("path") == name:
            return preset
    if name.startswith(("/", "./", "../", "~")) or name.count("/") != 1 or not all(name.split("/")):
        known = [preset for preset in presets if preset != "custom"]
        meant = suggest(name, known) if "/" not in name else "; correct it"
        if found := re.fullmatch(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/?", name):
            meant = f"; did you mean {found[1]}?"
        raise UserError(f"model={name} is neither a preset nor a directory nor a hub id (owner/name){meant}")
    return Named({"name": name.replace("/", "--"), "path": name, "family": "other"})


def weights_of(name: str) -> str:
    """Return the place of the weights that `name` means: a directory, a hub id or a packaged checkpoint."""
    meant = resolve_model(name)
    return str(read_option(option_files("model")[meant])["path"] if isinstance(meant, str) else meant.values["path"])


def run_of(folder: Path) -> Path | None:
    """Return the run directory that contains a folder or is the folder itself. None if there is none."""
    places = (folder, *folder.parents[:2])
    return next((place for place in places if (place / "status.json").is_file()), None) if folder.is_dir() else None


def _of_directory(folder: Path, name: str) -> Named:
    run = run_of(folder)
    if run == folder:
        folder = run / "model"
        if not folder.is_dir():
            raise UserError(
                f"model={name}: the run has no trained model yet; give one of its checkpoints, or finish the run"
            )
    adapter = folder / "adapter_config.json"
    if not (folder / "config.json").is_file() and not adapter.is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/status.json"))
        meant = f"; did you mean the run {Path(name) / inside[-1]}?" if inside else "; give a checkpoint's directory"
        raise UserError(f"model={name} has neither config.json nor adapter_config.json{meant}")
    if run is not None:
        saved = OmegaConf.load(run / "config.yaml").model
        place = run.name if folder.name == "model" else f"{run.name}-{folder.name}"
        inherited = {key: saved[key] for key in INHERITED if saved.get(key) is not None}
        if adapter.is_file() and saved.get("revision"):  # an adapter has the same base model as its run
            inherited["revision"] = saved.revision
        return Named({"name": f"{run.parent.name}-{place}", "path": str(folder), **inherited}, _preset_of(saved))
    family = "other"
    if not adapter.is_file():
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
        except (ValueError, AttributeError) as error:
            file = folder / "config.json"
            raise UserError(f"{file} is damaged ({error}); copy the checkpoint again") from error
        family = FAMILIES.get(kind, "other")
    return Named({"name": folder.name, "path": str(folder), "family": family})


def _preset_of(saved: Any) -> str | None:
    """Return the preset that a run's model was trained from, even through several runs. None if there is none."""
    name, path = saved.get("name"), str(saved.get("path", ""))
    if name in option_files("model") and name != "custom":
        return str(name)
    try:
        named = resolve_model(path) if Path(path).is_dir() else None
    except UserError:  # that run was moved or deleted
        return None
    return named.scaled_as if isinstance(named, Named) else named
