"""`agentrl ls [DIR ...] [key=value ...] [--json]`: list runs with status, method, model, bench, result and age."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.commands.arguments import key_lines
from agentrl.core.errors import UserError
from agentrl.report.listing import Cell, Listed, list_runs
from agentrl.report.markdown import TOO_FEW

FILTERS = {
    "status": "created, running, dead (its process is gone), completed, failed, interrupted, dry_run, damaged.",
    "algo, model, bench": "Names, e.g. algo=pact,grpo model='qwen*'.",
    "name": "Part of the path.",
    "any key": "A key of the configuration, e.g. seed=0 or trainer.learning_rate=1e-4.",
}
HELP = f"""agentrl ls [DIR ...] [key=value ...] [--json]

Lists the runs below DIR (default runs/), the newest first. `--json` prints one list of objects for scripts.
A filter takes one or several patterns, separated by commas:

{key_lines(FILTERS)}

The result is the bench's key metric after training, with its 95% interval, and its change by training."""
COLOURS = {"running": "cyan", "completed": "green", "failed": "red", "damaged": "red", "dead": "yellow"}
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def main(arguments: list[str]) -> int:
    """Print the runs; return exit code 1 if there is none. Raise UserError as `list_runs` does."""
    as_json = "--json" in arguments
    rest = [argument for argument in arguments if argument != "--json"]
    for argument in rest:
        if argument.startswith("-"):
            raise UserError(f"{argument} is not a flag; did you mean --json?")
    places = [argument for argument in rest if "=" not in argument or Path(argument).expanduser().is_dir()]
    filters = dict(argument.split("=", 1) for argument in rest if argument not in places)
    if not places and not Path("runs").is_dir():
        raise UserError("there is no directory runs/ here; name a directory that holds runs: agentrl ls DIR")
    runs = list_runs([Path(place).expanduser() for place in places or ["runs"]], filters)
    if as_json:
        print(json.dumps([run.as_dict() for run in runs], indent=2))
        return int(not runs)
    console = Console(highlight=False)
    if not runs:
        console.print("No run passes these filters." if filters else "There is no run.")
        return 1
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # a pipe has no width
    console.print(_table(runs))
    return 0


def _table(runs: list[Listed]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "method", "model", "bench", "updates", "result", "change", "age"):
        right = name in ("updates", "result", "change", "age")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for run in runs:
        made = "" if run.step is None else f"{run.step}" + (f"/{run.max_steps}" if run.max_steps else "")
        result = f"{run.metric} {_interval(run.after)}" if run.after else ""
        change = _interval(run.difference, signed=True) if run.difference else ""
        cells = [run.algo, run.model, run.bench, made, result, change, _age(run.age_s)]
        table.add_row(
            Text(os.path.relpath(run.path)), Text(run.status, style=COLOURS.get(run.status, "dim")), *map(Text, cells)
        )
    return table


def _interval(cell: Cell, signed: bool = False) -> str:
    form = "{:+.3f}" if signed else "{:.3f}"
    mean, lo, hi = cell["mean"], cell["lo"], cell["hi"]
    if mean is None:
        return "-"
    return f"{form.format(mean)} {TOO_FEW if lo is None or hi is None else f'[{form.format(lo)}, {form.format(hi)}]'}"


def _age(seconds: float) -> str:
    """Return the age in its largest whole unit."""
    for size, unit in AGES:
        if seconds >= size and seconds != float("inf"):
            return f"{int(seconds // size)} {unit}"
    return "" if seconds == float("inf") else "now"
