"""Make a checkpoint from a GGUF file: transformers reads and dequantises it, and it is saved as float32 safetensors.

A run with `model.path=FILE.gguf` does this once and keeps the checkpoint in a cache. This writes it to a folder:

    python -m agentrl.models.gguf FILE.gguf FOLDER
"""

from __future__ import annotations

import fcntl
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError, first_line
from agentrl.core.gguf import content_hash, converted_folder, holds_gguf, require_packages
from agentrl.models.complete import require_complete
from agentrl.store.durable import disk_errors, write_json

MANIFEST = "agentrl_gguf.json"  # in the folder: what it was made from, by which releases, and the files that it holds


def checkpoint_of(file: Path, folder: Path | None = None) -> Path:
    """Return the folder of the checkpoint that is made from `file`. Make it if it is missing or damaged.

    Raises:
        UserError: `file` is no GGUF file, its architecture is unknown to transformers, a package is missing, or
            `folder` holds something else.
    """
    file = file.expanduser().absolute()
    if not file.is_file() or not holds_gguf(file):
        raise UserError(f"model.path={file}: no GGUF file; download it again, or name a checkpoint directory")
    folder = converted_folder(file) if folder is None else folder.expanduser().absolute()
    if not _is_whole(folder, file):
        require_packages(f"model.path={file}")
        _refuse_other(folder)
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not _is_whole(folder, file):  # another process has not made it meanwhile
                    _write(file, folder)
    return folder


def _is_whole(folder: Path, file: Path) -> bool:
    """Check that the folder was made from this file, and that nothing in it has changed since."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["source"]["sha256"] == content_hash(file) and manifest["files"] == _states(folder))
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: it is made anew
        return False


def _states(folder: Path) -> dict[str, list[int]]:
    """Return size and time of change of the files. Reading gigabytes before each run would take too long."""
    found = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in found}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes this folder. The kernel frees the lock if its holder dies."""
    with folder.with_name(f".{folder.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_other(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds something else; name a new folder for the checkpoint")


def _write(file: Path, folder: Path) -> None:
    print(f"Making a checkpoint of {file.name} in {folder}, once.", flush=True)
    draft = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed
    _convert(file, draft)
    manifest = {
        "source": {"file": str(file), "bytes": file.stat().st_size, "sha256": content_hash(file)},
        "versions": {name: version(name) for name in ("transformers", "gguf", "torch")},
        "files": _states(draft),
    }
    write_json(draft / MANIFEST, manifest)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    draft.rename(folder)


def _convert(file: Path, folder: Path) -> None:
    # Slow to import, and needed once for each file.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            **source, **_dense(), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, struct.error) as error:
        raise UserError(
            f"model.path={file} cannot be read as GGUF: {first_line(error)}; transformers does not know it, or it is "
            "damaged: download it again"
        ) from error
    require_complete(str(file), report)
    # transformers refuses to save a model that it read from GGUF, so its weights are saved as those of a plain one.
    config = model.config
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dense() -> dict[str, Any]:
    """Return the arguments that make transformers dequantise all weights. Its earlier releases always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("python -m agentrl.models.gguf FILE.gguf [FOLDER]")
    try:
        print(checkpoint_of(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None))
    except UserError as error:
        print(f"agentrl: error: {error}", file=sys.stderr)
        sys.exit(2)
