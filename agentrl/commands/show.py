"""`agentrl show RUN [key=value ...]`: show a run's rollouts, or the items of its evaluations, on the terminal."""

from __future__ import annotations

from rich.console import Console

from agentrl.commands.arguments import key_lines, open_run, read_flag, read_whole_number, split_places
from agentrl.core.console import WIDE, is_on_terminal
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory

KEYS = {
    "source": "rollouts (sampled in training; the default) or eval (evaluated items, before and after side by side).",
    "where": "Comparisons that must all be true, e.g. where='reward<1,errors>0' (any metric, step, turns, truncated).",
    "step": "For rollouts: those of this logged step: a number, first, last or all; default: first and last.",
    "task": "Only the task with this id; if there is none, the tasks whose id contains this.",
    "limit": "The largest number of rollouts or items to show.",
    "prompt": "For rollouts: true also shows the prompts.",
}

HELP = f"""agentrl show RUN [key=value ...]

Shows a run's rollouts, or the items of its evaluations, on the terminal.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Print what passes the filters; return exit code 1 if nothing does. Raise UserError if the keys make no sense."""
    places, own = split_places(arguments, KEYS)
    if len(places) != 1:
        raise UserError("name one run directory: agentrl show RUN [key=value ...]")
    run = open_run(places[0])
    source, limit = own.get("source") or _source(run), read_whole_number(own, "limit", 6)
    console = Console(highlight=False, markup=False)
    if not is_on_terminal(console):
        console = Console(highlight=False, markup=False, width=WIDE)
    if source == "eval":
        shown = _show_items(run, own, limit, console)
    elif source == "rollouts":
        shown = _show_rollouts(run, own, limit, console)
    else:
        raise UserError(f"source={source} is not a choice; choose rollouts or eval")
    if not shown:
        console.print(f"Nothing in {run.path} passes these filters.")
    return int(not shown)


def _show_rollouts(run: RunDirectory, own: dict[str, str], limit: int, console: Console) -> int:
    from agentrl.report.rollouts import View, view
    from agentrl.report.terminal import (
        find_tasks,
        parse_filter,
        print_legend,
        refuse_unknown,
        rollout_numbers,
        rollout_panel,
    )

    keep, prompt = parse_filter(own.get("where", "")), read_flag(own, "prompt")
    views = [view(record) for record in run.records(run.rollouts_path)]
    refuse_unknown(own.get("where", ""), {name for one in views for name in rollout_numbers(one)})
    steps = sorted({one.step for one in views})
    chosen: dict[int, list[View]] = {step: [] for step in _steps(own.get("step"), steps)}
    meant = find_tasks(own.get("task", ""), {one.task for one in views})
    for one in views:
        if one.step in chosen and one.task in meant and keep(rollout_numbers(one)):
            chosen[one.step].append(one)
    found = [one for group in chosen.values() for one in group[: max(limit // max(len(chosen), 1), 1)]][:limit]
    if found:
        print_legend(console)
    for one in found:
        console.print(rollout_panel(one, prompt=prompt))
    total = sum(map(len, chosen.values()))
    if total > len(found):
        console.print(
            f"{len(found)} of {total} shown; limit={total} shows all. Logged steps: {steps[0]} to {steps[-1]}"
        )
    return len(found)


def _show_items(run: RunDirectory, own: dict[str, str], limit: int, console: Console) -> int:
    from agentrl.evaluation.results import played_items
    from agentrl.report.terminal import compare_items, find_tasks, item_numbers, parse_filter, refuse_unknown

    for name in ("step", "prompt"):
        if name in own:
            raise UserError(f"{name}={own[name]}: only rollouts have it; leave it out, or set source=rollouts")
    keep = parse_filter(own.get("where", ""))
    before, after = (played_items(run.items(phase)) for phase in ("before", "after"))
    if not before and not after:
        raise UserError(f"{run.path} has evaluated nothing yet; source=rollouts shows what was sampled in training")
    refuse_unknown(own.get("where", ""), {name for item in after or before for name in item_numbers(item)})
    meant = find_tasks(own.get("task", ""), {item["id"] for item in after or before})
    kept = [item for item in after or before if item["id"] in meant and keep(item_numbers(item))]
    for renderable in compare_items(
        before if after else [], kept[:limit], console.width if is_on_terminal(console) else 0
    ):
        console.print(renderable)
    if len(kept) > limit:
        console.print(f"{limit} of {len(kept)} shown; limit={len(kept)} shows all.")
    return len(kept[:limit])


def _source(run: RunDirectory) -> str:
    """Return "rollouts" if the run has some, else "eval": a run that only evaluates has none."""
    return "rollouts" if run.rollouts_path.is_file() else "eval"


def _steps(wanted: str | None, logged: list[int]) -> list[int]:
    """Return the logged steps that `step=` names."""
    if not logged:
        return []
    named = {None: [logged[0], logged[-1]], "first": logged[:1], "last": logged[-1:], "all": logged}
    if wanted in named:
        return list(dict.fromkeys(named[wanted]))
    number = int(wanted) if wanted is not None and wanted.isdecimal() else None
    if number is None or number not in logged:
        raise UserError(f"step={wanted} was not logged; logged are {logged[0]} to {logged[-1]} (first, last, all)")
    return [number]
