"""`agentrl judge compare|distill ...`: what else a run's verdicts are for: compare two judges, distil one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table

from agentrl.commands.arguments import key_lines, places_and_keys, say
from agentrl.config.judges import Distillation
from agentrl.config.load import suggest
from agentrl.core.console import printer
from agentrl.core.errors import UserError
from agentrl.core.stats import Interval

COMPARE_KEYS = {
    "model_a": "Judge of the first cache, where it holds several: the model's name, or MODEL#DIGITS as shown.",
    "model_b": "Judge of the second cache, where it holds several: the model's name, or MODEL#DIGITS as shown.",
}
DISTILL_KEYS = {
    item.name: item.metadata["doc"] + ("" if item.default in (MISSING, None) else f" (default {item.default})")
    for item in fields(Distillation)
}
HELP = f"""agentrl judge compare CACHE_A CACHE_B [model_a=NAME] [model_b=NAME]

How far the second judge agrees with the first on the responses that both judged.

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
    """Print agreement by side; exit code 0."""
    from agentrl.core.judge import SIDES
    from agentrl.judges.agreement import agreement
    from agentrl.judges.cache import entries_of, open_cache

    paths, own = places_and_keys(arguments, COMPARE_KEYS)
    if len(paths) != 2:
        raise UserError(f"agentrl judge compare needs two caches, not {len(paths)}: CACHE_A CACHE_B")
    caches = [entries_of(open_cache(path), own.get(key), key) for path, key in zip(paths, COMPARE_KEYS, strict=True)]
    first, second = ({entry.request: entry.score for entry in entries} for entries in caches)
    found = False
    for side in SIDES:
        common = [request for request in first if request in second and request.side == side]
        both = [(r, a, b) for r in common if (a := first[r]) is not None and (b := second[r]) is not None]
        if not both:
            continue
        found = True
        measured = agreement([a for _, a, _ in both], [b for _, _, b in both], [r.prompt for r, _, _ in both])
        missing = f", {len(common) - len(both)} without a score left out" if len(common) > len(both) else ""
        prompts = len({request.prompt for request, _, _ in both})
        _table(f"{side}: {len(both)} responses to {prompts} prompts{missing}", measured)
    if not found:
        raise UserError("the two caches have no judged response in common; let both judges see the same responses")
    return 0


def distill(arguments: list[str]) -> int:
    """Fit, print the agreement on held-out prompts; exit code 0."""
    places, own = places_and_keys(arguments, DISTILL_KEYS)
    if places:
        raise UserError(f"'{places[0]}' is not key=value: agentrl judge distill cache=FILE out=DIR [key=value ...]")
    settings = _distillation(own)
    say(f"loading {settings.base} and the verdicts of {settings.cache}")
    from agentrl.judges.distill import distill as fit

    for side, report in fit(settings).items():
        title = f"{side}: {report.train} verdicts learned from, {report.held_out} held out"
        _table(f"{title}; always giving the mean would be off by {report.mae_of_mean:.3f}", report.agreement)
    print(f"Use it with judge=distilled judge.path={settings.out}")
    return 0


def _distillation(own: Mapping[str, str]) -> Distillation:
    """Typed settings. Raises UserError for a value of the wrong type or out of range."""
    for item in fields(Distillation):
        if item.default is MISSING and not own.get(item.name):
            raise UserError(f"{item.name}=... is missing. {DISTILL_KEYS[item.name]}")
    node = OmegaConf.structured(Distillation)
    for name, value in own.items():
        try:
            node[name] = None if value == "null" else value
        except OmegaConfBaseException as error:
            raise UserError(f"{name}={value!r} is of the wrong type. {DISTILL_KEYS[name]}") from error
    settings: Distillation = OmegaConf.to_object(node)  # type: ignore[assignment]
    for name in ("epochs", "learning_rate", "batch"):
        if not getattr(settings, name) > 0:
            raise UserError(f"{name}={getattr(settings, name)}: must be above 0")
    if not 0 < settings.held_out < 1:
        raise UserError(f"held_out={settings.held_out}: must lie in (0, 1)")
    if settings.max_tokens < 16:
        raise UserError(f"max_tokens={settings.max_tokens}: must be at least 16")
    if settings.device not in ("cpu", "cuda"):
        raise UserError(f"device={settings.device}: must be cpu or cuda")
    return settings


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
    printer().print(table)
