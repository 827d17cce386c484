"""`agentrl merge RUN [out=DIR]`: the adapter that a run trained, put into its base: a checkpoint that stands alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from agentrl.config.compose import command_keys
from agentrl.errors import UserError
from agentrl.run import RunDirectory

KEYS = {"out": "Directory for the checkpoint, made anew; RUN/merged where it is left out."}
USAGE = "agentrl merge RUN [out=DIR]"
HELP = f"""{USAGE}

Puts the adapter that a run trained into its base; full weights, tokenizer and chat template stand alone after.

{chr(10).join(f"  {key:<8} {sentence}" for key, sentence in KEYS.items())}"""


def main(arguments: list[str]) -> int:
    """Write weights, tokenizer and chat template. Raises UserError where there is no adapter or `out` exists."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    places = [argument for argument in arguments if "=" not in argument]
    own, unknown = command_keys([argument for argument in arguments if "=" in argument], KEYS)
    if len(places) != 1 or unknown:
        raise UserError(f"usage: {USAGE}")
    run = RunDirectory(Path(places[0]).expanduser())
    run.status()  # refuses what is no run directory
    adapter = run.path / "model"
    if not adapter.is_dir():
        raise UserError(f"{run.path} has no trained model yet; let the run finish (the same command resumes it)")
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds full weights already: there is nothing to merge")
    out = Path(own["out"]).expanduser().absolute() if own.get("out") else run.path / "merged"
    if out.exists():
        raise UserError(f"{out} exists already; remove it, or choose another out=...")

    from transformers import AutoTokenizer  # seconds to import; a mistake above is answered at once

    from agentrl.models.loading import load_model

    model = load_model(replace(run.config().model, path=str(adapter), revision=None))
    draft = out.with_name(f".{out.name}-writing")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a merge that was killed
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(draft)
        draft.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another out=...") from error
    print(out)
    return 0
