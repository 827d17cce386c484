"""`agentrl push RUN OWNER/NAME [weights=DIR] [private=true] [dry_run=true]`: upload a run's model to the hub."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from agentrl.commands.arguments import key_lines, open_run, read_flag, split_places
from agentrl.config.checks import require
from agentrl.core.errors import UserError, first_line
from agentrl.store.run import RunDirectory

KEYS = {
    "weights": "Directory of the weights to upload (default RUN/model; RUN/merged after agentrl merge).",
    "private": "true (the default) or false: whether a new repository is private.",
    "dry_run": "true writes the folder, shows what would be uploaded, and stops; this needs no network.",
}
USAGE = "agentrl push RUN OWNER/NAME [weights=DIR] [private=true] [dry_run=true]"
HELP = f"""{USAGE}

Writes RUN/hub with the weights and a model card (results, configuration, commit), then uploads it with HF_TOKEN.

{key_lines(KEYS)}"""
FOLDER = "hub"  # in the run directory: holds exactly what is uploaded


def main(arguments: list[str]) -> int:
    """Write the folder with its model card and upload it. Raise UserError for an incomplete run or a refusal."""
    places, own = split_places(arguments, KEYS)
    if len(places) != 2:
        raise UserError(f"name a run directory and a repository: {USAGE}")
    private, dry_run = read_flag(own, "private", default=True), read_flag(own, "dry_run")
    run, repository = open_run(places[0]), places[1]
    if run.status()["status"] != "completed":
        raise UserError(f"{run.path} is {run.status()['status']}, and a model card needs its results; finish the run")
    weights = Path(own["weights"]).expanduser() if own.get("weights") else run.path / "model"
    if not any((weights / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{weights} holds no model (config.json or adapter_config.json); name weights=DIR")
    adapter = weights / "adapter_config.json"
    if (
        adapter.is_file()
        and Path(str(base := json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])).exists()
    ):
        raise UserError(
            f"{weights} is an adapter for {base}, which is only on this machine; run `agentrl merge {run.path}`, then "
            f"set weights={run.path / 'merged'}"
        )

    from huggingface_hub import HfApi  # slow to import; a mistake above is reported at once
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        require("/" in repository, "the repository", repository, "must be OWNER/NAME")
    except HFValidationError as error:
        raise UserError(f"'{repository}' is not a repository's name, OWNER/NAME: {error}") from error
    folder = write_folder(run, weights, repository)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:>14,} B  {path.relative_to(folder)}")
    visible = "private" if private else "public"
    if dry_run:
        print(f"Dry run: {len(files)} files of {folder} would go to {visible} {repository}; nothing was sent.")
        return 0
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"agentrl run {run.path.name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:  # OSError: no network
        raise UserError(
            f"{repository} was not uploaded: {first_line(error)}; check HF_TOKEN (it must be allowed to write) and the "
            f"network. The folder is ready: {folder}"
        ) from error
    print(f"{visible} unless it existed otherwise: {done.commit_url}")
    return 0


def write_folder(run: RunDirectory, weights: Path, repository: str) -> Path:
    """Write a new folder with weights (hard links if the disk has them), model card, configuration and summary."""
    from agentrl.report.card import model_card

    folder = run.path / FOLDER
    try:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(weights, folder, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("README.md"))
        _name_revision(folder / "adapter_config.json", run)
        for path in (run.config_path, run.summary_path):
            shutil.copy(path, folder / f"agentrl_{path.name}")
        (folder / "README.md").write_text(model_card(run, weights, repository), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _name_revision(file: Path, run: RunDirectory) -> None:
    """Write into an adapter which revision of its base the run trained on, if it does not say so yet."""
    model = run.config().model
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and model.revision else {}
    if saved.get("base_model_name_or_path") == model.path and not saved.get("revision"):
        file.unlink()  # it may be a hard link to the run's own file
        file.write_text(json.dumps(saved | {"revision": model.revision}, indent=2), encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk without hard links
        shutil.copy2(source, target)
