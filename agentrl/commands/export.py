"""`agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]`: write an evaluation for the official evaluator."""

from __future__ import annotations

from pathlib import Path

from agentrl.benches.bfcl.results import MODEL, write_results
from agentrl.commands.arguments import key_lines, open_run, split_places
from agentrl.core.errors import UserError
from agentrl.evaluation.results import played_items

KEYS = {
    "phase": "Which evaluation: before or after training (default after).",
    "as": "A model name that the official evaluator knows. Its handler there must read Qwen's calls.",
    "out": "Directory for the result files (default RUN/bfcl).",
}
USAGE = "agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]"
HELP = f"""{USAGE}

Writes an evaluation as files for bfcl-eval, and prints the command that scores them.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Write `<out>/result/...` and print the command that scores it."""
    places, own = split_places(arguments, KEYS)
    if len(places) != 2 or places[0] != "bfcl":
        raise UserError(f"name the format and a run directory: {USAGE}")
    run, phase, model = open_run(places[1]), own.get("phase", "after"), own.get("as", MODEL)
    bench = run.config().bench.name
    if bench != "bfcl":
        raise UserError(f"{run.path} is a run on bench={bench}; name a run on bench=bfcl")
    items = played_items(run.records(run.eval_dir / f"{phase}.jsonl"))
    if not items:
        raise UserError(f"{run.path} holds no evaluation called {phase}; set phase=before or phase=after")
    out = Path(own["out"]).expanduser() if own.get("out") else run.path / "bfcl"
    paths = write_results(items, out / "result", model)
    for path in paths:
        print(path)
    categories = ",".join(path.name.removeprefix("BFCL_v4_").removesuffix("_result.json") for path in paths)
    print(
        "To score them with the official code, in an environment with all requirements of bfcl-eval:\n"
        f"BFCL_PROJECT_ROOT={out.resolve()} bfcl evaluate --model {model} --test-category {categories}"
        " --partial-eval"
    )
    return 0
