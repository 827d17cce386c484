"""What `model=` of an evaluation may name, as overrides of the configuration: a preset, a run, a checkpoint, a hub id.

Reads configuration files only; no torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from agentrl.config.compose import CONF
from agentrl.errors import UserError

FAMILIES = {"qwen2": "qwen2.5", "qwen3": "qwen3", "llama": "llama3", "phi3": "phi3"}  # by config.json's model_type
INHERITED = ("family", "reasoning", "dtype", "attn_implementation")  # of a run whose weights are evaluated


def model_overrides(name: str) -> list[str]:
    """Overrides that load what `name` means. Raises UserError where it means nothing.

    A run directory stands for its trained model (its `model/`); a directory inside a run takes what the run says of
    its model; a directory without config.json may hold an adapter, whose base is named in adapter_config.json.
    """
    if (CONF / "model" / f"{name}.yaml").is_file() and name != "custom":
        return [f"model={name}"]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _of_directory(folder.absolute())
    if name.startswith(("/", "./", "../", "~")) or "/" not in name:
        presets = ", ".join(sorted(file.stem for file in (CONF / "model").glob("*.yaml") if file.stem != "custom"))
        raise UserError(
            f"model={name} is no preset ({presets}), no directory and no hub id (owner/name); give one of these"
        )
    for file in sorted((CONF / "model").glob("*.yaml")):
        if yaml.safe_load(file.read_text(encoding="utf-8")).get("path") == name:
            return [f"model={file.stem}"]
    return _custom(name.replace("/", "--"), name, "other")


def _of_directory(folder: Path) -> list[str]:
    run = next((place for place in (folder, *folder.parents[:2]) if (place / "status.json").is_file()), None)
    if run == folder:
        folder = run / "model"
        if not folder.is_dir():
            raise UserError(f"model={run}: the run has no trained model yet; name one of its checkpoints, or finish it")
    adapter = folder / "adapter_config.json"
    if not (folder / "config.json").is_file() and not adapter.is_file():
        raise UserError(f"model={folder}: neither config.json nor adapter_config.json is there; give a checkpoint")
    if run is not None:
        saved = OmegaConf.load(run / "config.yaml").model
        place = run.name if folder.name == "model" else f"{run.name}-{folder.name}"
        name = f"{run.parent.name}-{place}"
        return [
            *_custom(name, str(folder), saved.family),
            *(f"model.{key}={saved[key]}" for key in INHERITED[1:]),
            # The base of an adapter is that of the run.
            *([f"model.revision='{saved.revision}'"] if adapter.is_file() and saved.revision else []),
        ]
    if adapter.is_file():
        return _custom(folder.name, str(folder), "other")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} is damaged: {error}") from error
    return _custom(folder.name, str(folder), FAMILIES.get(kind, "other"))


def _custom(name: str, path: str, family: str) -> list[str]:
    return ["model=custom", f"model.name='{name}'", f"model.path='{path}'", f"model.family={family}"]
