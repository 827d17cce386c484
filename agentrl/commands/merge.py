"""`agentrl merge RUN [out=DIR] [dtype=TYPE]`: merge a run's trained adapter into its base, as a full checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

from agentrl.commands.arguments import key_lines, open_run, say, split_places
from agentrl.config.checks import require
from agentrl.config.judges import Dtype
from agentrl.core.errors import UserError
from agentrl.core.quiet import quiet_libraries

KEYS = {
    "out": "New directory for the checkpoint (default RUN/merged).",
    "dtype": "Type of the weights: float32, bfloat16 or float16 (default: that of the run). 16 bits round the sum.",
}
USAGE = "agentrl merge RUN [out=DIR] [dtype=TYPE]"
HELP = f"""{USAGE}

Merges a run's trained adapter into its base, and writes full weights, tokenizer and chat template.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Write weights, tokenizer and chat template. Raise UserError if there is no adapter, or if `out` exists."""
    places, own = split_places(arguments, KEYS)
    if len(places) != 1:
        raise UserError(f"name one run directory: {USAGE}")
    types = get_args(Dtype)
    require(
        own.get("dtype", types[0]) in types,
        "dtype",
        own.get("dtype"),
        f"must be {', '.join(types[:-1])} or {types[-1]}",
    )
    run = open_run(places[0])
    adapter = run.path / "model"
    if not adapter.is_dir():
        raise UserError(f"{run.path} has no trained model yet; let the run finish (the same command resumes it)")
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds full weights already, so there is nothing to merge; use it as it is")
    out = Path(own["out"]).expanduser().absolute() if own.get("out") else run.path / "merged"
    if out.exists():
        raise UserError(f"{out} exists already; remove it, or choose another out=...")

    say(f"loading {adapter} and its base")
    from transformers import AutoTokenizer  # slow to import; a mistake above is reported at once

    from agentrl.models.loading import load_model

    quiet_libraries()
    trained = run.config().model
    model = load_model(trained.model_copy(update={"path": str(adapter), "dtype": own.get("dtype", trained.dtype)}))
    draft = out.with_name(f".{out.name}-writing")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a merge that was killed
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(draft)
        draft.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another out=...") from error
    print(out)
    return 0
