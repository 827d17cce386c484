"""`agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]`: a run's evaluation for the official BFCL evaluator."""

from __future__ import annotations

from pathlib import Path

from agentrl.benches.bfcl.results import MODEL, write_results
from agentrl.commands.arguments import key_lines, places_and_keys, run_at
from agentrl.core.errors import UserError
from agentrl.evaluation.results import played_items

KEYS = {
    "phase": "The evaluation: before or after.",
    "as": "A model name that the official evaluator knows; its handler must read Qwen's calls.",
    "out": "Directory for the result files; the run's own bfcl/ where it is left out.",
}
USAGE = "agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]"
HELP = f"""{USAGE}

Writes an evaluation in the files that bfcl-eval scores, and prints the command that scores them.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Write `<out>/result/...` and print the command that scores it."""
    places, own = places_and_keys(arguments, KEYS)
    if len(places) != 2 or places[0] != "bfcl":
        raise UserError(f"name the format and a run directory: {USAGE}")
    run, phase, model = run_at(places[1]), own.get("phase", "after"), own.get("as", MODEL)
    bench = run.config().bench.name
    if bench != "bfcl":
        raise UserError(f"{run.path} is a run on bench={bench}, not bfcl; give a run of bench=bfcl")
    items = played_items(run.records(run.eval_dir / f"{phase}.jsonl"))
    if not items:
        raise UserError(f"{run.path} holds no evaluation called {phase}; give phase=before or phase=after")
    out = Path(own["out"]).expanduser() if own.get("out") else run.path / "bfcl"
    paths = write_results(items, out / "result", model)
    for path in paths:
        print(path)
    categories = ",".join(path.name.removeprefix("BFCL_v4_").removesuffix("_result.json") for path in paths)
    print(
        "To score them officially, in an environment with all of bfcl-eval's own requirements:\n"
        f"BFCL_PROJECT_ROOT={out.resolve()} bfcl evaluate --model {model} --test-category {categories}"
        " --partial-eval"
    )
    return 0
