"""`agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]`: a run's evaluation for the official BFCL evaluator."""

from __future__ import annotations

from pathlib import Path

from agentrl.benches.bfcl.results import MODEL, write_results
from agentrl.config.compose import command_keys
from agentrl.errors import UserError
from agentrl.run import RunDirectory

KEYS = {
    "phase": "The evaluation: before or after.",
    "as": "A model name that the official evaluator knows; its handler must read Qwen's calls.",
    "out": "Directory for the result files; the run's own bfcl/ where it is left out.",
}
USAGE = "agentrl export bfcl RUN [phase=after] [as=MODEL] [out=DIR]"


def main(arguments: list[str]) -> int:
    """Write `<out>/result/...` and print the command that scores it."""
    kind, place, *rest = [*arguments, "", ""]
    given, unknown = command_keys([argument for argument in rest if argument], KEYS)
    if kind != "bfcl" or not place or unknown:
        raise UserError(f"usage: {USAGE}")
    keys = {"phase": "after", "as": MODEL, "out": ""} | given
    run = RunDirectory(place)
    bench = run.config().bench.name
    if bench != "bfcl":
        raise UserError(f"{run.path} is a run on bench={bench}, not bfcl; give a run of bench=bfcl")
    items = run.records(run.eval_dir / f"{keys['phase']}.jsonl")
    if not items:
        raise UserError(f"{run.path} holds no evaluation called {keys['phase']}; give phase=before or phase=after")
    out = Path(keys["out"]).expanduser() if keys["out"] else run.path / "bfcl"
    paths = write_results(items, out / "result", keys["as"])
    for path in paths:
        print(path)
    categories = ",".join(path.name.removeprefix("BFCL_v4_").removesuffix("_result.json") for path in paths)
    print(
        "To score them officially, in an environment with all of bfcl-eval's own requirements:\n"
        f"BFCL_PROJECT_ROOT={out.resolve()} bfcl evaluate --model {keys['as']} --test-category {categories}"
        " --partial-eval"
    )
    return 0
