"""`agentrl judge compare|distill ...`: use cached verdicts to compare two judges, or to distil one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table

from agentrl.commands.arguments import key_lines, say, split_places
from agentrl.config.judges import Distillation
from agentrl.config.key import sentence
from agentrl.config.load import make_group
from agentrl.config.meanings import suggest
from agentrl.core.console import make_console
from agentrl.core.errors import UserError
from agentrl.core.stats import Interval

COMPARE_KEYS = {
    "model_a": "Judge of the first cache, if it holds several: the model's name, or MODEL#DIGITS as shown.",
    "model_b": "Judge of the second cache, if it holds several: the model's name, or MODEL#DIGITS as shown.",
}
DISTILL_KEYS = {
    name: sentence(item) + ("" if item.is_required() or item.default is None else f" (default {item.default})")
    for name, item in Distillation.model_fields.items()
}
HELP = f"""agentrl judge compare CACHE_A CACHE_B [model_a=NAME] [model_b=NAME]

Shows how far the second judge agrees with the first on the responses that both judged.

{key_lines(COMPARE_KEYS)}

agentrl judge distill cache=FILE out=DIR [key=value ...]

Fits a small reward model to cached verdicts; use it with judge=distilled judge.path=DIR.

{key_lines(DISTILL_KEYS)}"""
MEASURES = {
    "concordance": "pairs ordered alike",
    "concordance_within": "... of one prompt",
    "spearman": "rank correlation",
    "mae": "mean |difference|",
    "shift": "mean difference",
}


def main(arguments: list[str]) -> int:
    match arguments:
        case ["compare", *rest]:
            return compare(rest)
        case ["distill", *rest]:
            return distill(rest)
        case [word, *_]:
            raise UserError(f"agentrl judge {word}: unknown{suggest(word, ['compare', 'distill'])}")
        case _:
            raise UserError("say what to do: agentrl judge compare CACHE_A CACHE_B, or agentrl judge distill cache=...")


def compare(arguments: list[str]) -> int:
    """Print the agreement by side; return exit code 0."""
    from agentrl.core.judge import SIDES
    from agentrl.judges.agreement import agreement
    from agentrl.judges.cache import choose_entries, open_cache

    paths, own = split_places(arguments, COMPARE_KEYS)
    if len(paths) != 2:
        raise UserError(f"agentrl judge compare needs two caches, not {len(paths)}: CACHE_A CACHE_B")
    caches = [
        choose_entries(open_cache(path), own.get(key), key) for path, key in zip(paths, COMPARE_KEYS, strict=True)
    ]
    first, second = ({entry.request: entry.score for entry in entries} for entries in caches)
    found = False
    for side in SIDES:
        common = [request for request in first if request in second and request.side == side]
        both = [(r, a, b) for r in common if (a := first[r]) is not None and (b := second[r]) is not None]
        if not both:
            continue
        found = True
        measured = agreement([a for _, a, _ in both], [b for _, _, b in both], [r.prompt for r, _, _ in both])
        missing = f"; {len(common) - len(both)} without a score are left out" if len(common) > len(both) else ""
        prompts = len({request.prompt for request, _, _ in both})
        _table(f"{side}: {len(both)} responses to {prompts} prompts{missing}", measured)
    if not found:
        raise UserError("the two caches have no judged response in common; let both judges see the same responses")
    return 0


def distill(arguments: list[str]) -> int:
    """Fit a model, print its agreement on held-out prompts; return exit code 0."""
    places, own = split_places(arguments, DISTILL_KEYS)
    if places:
        raise UserError(f"'{places[0]}' is not key=value: agentrl judge distill cache=FILE out=DIR [key=value ...]")
    settings = make_group(
        Distillation, {name: None if value == "null" else value for name, value in own.items() if value}
    )
    from agentrl.judges.cache import open_cache

    open_cache(settings.cache)  # a missing file is refused before the slow imports
    say(f"loading {settings.base} and the verdicts of {settings.cache}")
    from agentrl.judges.distill import distill as fit

    for side, report in fit(settings).items():
        title = f"{side}: {report.train} verdicts learned from, {report.held_out} held out"
        _table(f"{title}; always giving the mean would be off by {report.mae_of_mean:.3f}", report.agreement)
    print(f"Use it with judge=distilled judge.path={settings.out}")
    return 0


def _table(title: str, measured: Mapping[str, Interval]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in ("mean", "95% low", "high"):
        table.add_column(column, justify="right")
    for name, label in MEASURES.items():
        interval = measured[name]
        if not math.isnan(interval.mean):
            bounds = [f"{interval.lo:.3f}", f"{interval.hi:.3f}"] if interval.known else ["too few", "prompts"]
            table.add_row(label, f"{interval.mean:.3f}", *bounds)
    make_console().print(table)
