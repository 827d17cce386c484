"""`agentrl analyse attention CHECKPOINT [base=CHECKPOINT]`: make HIPO's Table 3 for a model and its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from agentrl.commands.arguments import key_lines, read_whole_number, say, split_keys
from agentrl.config.checks import require
from agentrl.config.compose import compose
from agentrl.config.inherit import bench_of, tasks_of
from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.config.target import weights_of
from agentrl.core.console import make_console
from agentrl.core.errors import UserError
from agentrl.core.quiet import quiet_libraries

if TYPE_CHECKING:
    from agentrl.core.stats import Interval

KEYS = {
    "base": "Checkpoint to compare with; default: the model that the run started from.",
    "alpha": "Share in (0, 1] of each layer's heads that are averaged: those that look farthest (default 0.25).",
    "limit": "Number of prompts of the test split (default 200).",
    "extent": "What counts as a message: 'message' with the template's marks, or only its 'content' (default message).",
    "out": "Directory for attention.json and attention.png (default: analysis/ in the run, else ./analysis).",
}
HELP = f"""agentrl analyse attention CHECKPOINT [base=CHECKPOINT] [key=value ...]

Shows where a model looks when its response begins: at the system prompt or the user, far or near (HIPO, Table 3).
CHECKPOINT is anything that model= accepts: a run directory, a checkpoint or adapter directory, a hub id, a preset.
A run directory knows its bench and base; otherwise name them: bench=... and base=.... Intervals are 95%, paired.

{key_lines(KEYS)}"""
LABELS = {
    "centroid": "Centroid",
    "far_mass": "FarMass",
    "near_mass": "NearMass",
    "far_near": "Far/Near",
    "system_mass": "SysMass",
    "user_mass": "UserMass",
    "system_user": "Sys/User",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["attention"]:
        raise UserError("say what to analyse: agentrl analyse attention CHECKPOINT [base=CHECKPOINT]")
    rest = arguments[1:]
    named = [argument for argument in rest if "=" not in argument and argument != "--config-dir"]
    if not named or rest[0] != named[0]:
        raise UserError("name the checkpoint first: agentrl analyse attention CHECKPOINT [base=CHECKPOINT]")
    own, overrides = split_keys(rest[1:], KEYS)
    return attention(named[0], own, overrides)


def attention(checkpoint: str, own: Mapping[str, str], overrides: list[str]) -> int:
    """Measure, print, and write attention.json and attention.png."""
    run = Path(checkpoint).expanduser()
    is_run = (run / "status.json").is_file()
    config = _configuration(checkpoint, is_run, overrides)
    base = own.get("base") or (load_config(run).model.path if is_run else None)
    if base is None:
        raise UserError("base=... is missing; name the checkpoint to compare with, e.g. base=Qwen/Qwen3-1.7B")
    alpha, limit = _share(own, "alpha", 0.25), read_whole_number(own, "limit", 200, least=2)
    extent = own.get("extent", "message")
    if extent not in ("message", "content"):
        raise UserError(f"extent={extent}: must be message or content")
    out = Path(own.get("out") or (run / "analysis" if is_run else "analysis")).expanduser()
    tasks = _tasks(config, limit)
    base, trained = weights_of(base), weights_of(checkpoint)
    say(f"loading {base}, then {trained}")
    measured = _measure(config, tasks, base, trained, alpha, extent)
    record = {"base": base, "trained": trained, "bench": config.bench.name, "alpha": alpha, "extent": extent}
    out.mkdir(parents=True, exist_ok=True)
    kinds = {kind: _plain(table) for kind, table in measured["kinds"].items()}
    content = {**record, "kinds": kinds, "profiles": measured["profiles"]}
    (out / "attention.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    from agentrl.report.attention import plot_attention

    plot_attention(measured["kinds"]["all"], measured["profiles"], out / "attention.png")
    for kind, table in measured["kinds"].items():
        _print(f"{kind}: {table['centroid']['difference'].n} prompts", table)
    print(f"{out}/attention.json and attention.png")
    return 0


def _configuration(checkpoint: str, is_run: bool, overrides: list[str]) -> Config:
    """Return the run's configuration, or that of the overrides on the run's tasks, or of the overrides alone."""
    if not is_run:
        return compose(overrides)
    if not overrides:
        return load_config(Path(checkpoint).expanduser())
    typed = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    bench = typed.get("bench") or bench_of([checkpoint]) or "minihop"
    chosen = [word for word in (f"model={checkpoint}", f"bench={bench}") if word.partition("=")[0] not in typed]
    return compose([*chosen, *tasks_of([checkpoint], bench, [*chosen, *overrides], overrides), *overrides])


def _tasks(config: Config, limit: int) -> list[Any]:
    """Return test tasks with a system and a user message. Raise UserError if there is none."""
    from agentrl.benches import load_bench

    tasks = load_bench(config.bench, config.sandbox).tasks("test", limit, config.seed)
    tasks = [task for task in tasks if {message["role"] for message in task.prompt} >= {"system", "user"}]
    if not tasks:
        raise UserError(f"bench={config.bench.name}: no test task has a system and a user message; name another bench")
    return tasks


def _measure(config: Config, tasks: list[Any], base: str, trained: str, alpha: float, extent: str) -> dict[str, Any]:
    """Return the tables by kind of prompt ("all" first) and the two profiles."""
    from agentrl.models.loading import load_chat, load_policy, needs_of
    from agentrl.models.onset import compare_onsets, measure_onset
    from agentrl.models.spans import prompt_spans

    quiet_libraries()
    model = config.model.model_copy(update={"attn_implementation": "eager"})
    chat = load_chat(model.model_copy(update={"path": base}), needs_of(tasks))
    prompts = [prompt_spans(chat, task.prompt, extent) for task in tasks]
    tables = [
        measure_onset(
            load_policy(model.model_copy(update={"path": path})).to(config.hardware.device).eval(), prompts, alpha
        )
        for path in (base, trained)
    ]
    groups = {"all": list(range(len(tasks)))}
    for index, task in enumerate(tasks):
        if "kind" in task.data:
            groups.setdefault(str(task.data["kind"]), []).append(index)
    kinds = {}
    for kind, indices in groups.items():
        before, after = (replace(table, rows=[table.rows[index] for index in indices]) for table in tables)
        kinds[kind] = compare_onsets(before, after, [tasks[index].cluster for index in indices])
    return {"kinds": kinds, "profiles": {"base": tables[0].profile, "trained": tables[1].profile}}


def _share(own: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(own.get(key, default))
    except ValueError as error:
        raise UserError(f"{key}={own[key]}: must be a number") from error
    require(0 < value <= 1, key, value, "must lie in (0, 1]")
    return value


def _plain(table: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    return {name: {who: interval.as_dict() for who, interval in row.items()} for name, row in table.items()}


def _print(title: str, table: Mapping[str, Mapping[str, Interval]]) -> None:
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "base", "trained", "difference [95%]"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, label in LABELS.items():
        row, change = table[name], table[name]["difference"]
        shown.add_row(
            label,
            f"{row['base'].mean:.4f}",
            f"{row['trained'].mean:.4f}",
            f"{change.mean:+.4f} [{change.lo:+.4f}, {change.hi:+.4f}]",
        )
    make_console().print(shown)
