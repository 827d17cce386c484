"""`agentrl plan [gpu=KIND] [price=N] [--json] [key=value ...]`: compute what a run would take: time, memory, price."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentrl.commands.arguments import key_lines, split_keys
from agentrl.config.checks import require
from agentrl.config.compose import compose
from agentrl.config.meanings import suggest
from agentrl.config.networks import Network, known_network
from agentrl.config.rules import validate
from agentrl.config.rules.batches import group_size
from agentrl.config.schema import Config
from agentrl.config.sequences import Lengths
from agentrl.core.console import make_console
from agentrl.core.errors import UserError
from agentrl.cost.estimate import describe_parts, longest
from agentrl.cost.gpus import GPUS
from agentrl.cost.plan import Costs, Plan, make_plan, read_lengths
from agentrl.models.hub import fetch_network

KEYS = {
    "gpu": f"Kind of GPU: {', '.join(GPUS)}. The default is h100.",
    "price": "Price of a GPU-hour, in your currency.",
    "prompt": "Mean tokens of a prompt, which you expect.",
    "completion": "Mean tokens of an episode after its prompt.",
    "trace": "Mean tokens of an expert trace; without it, those of an episode.",
    "like": "Directory of a run whose rollouts have the lengths that you expect.",
    "mfu": "Rate of the updates over the GPU's peak, between 0 and 1, if you have measured it.",
}
FORWARD_BACKWARD = "forward and backward"
LENGTHS = {  # and the key that bounds them
    "prompt": "rollout.max_prompt_tokens",
    "completion": "rollout.max_completion_tokens",
    "trace": "rollout.max_completion_tokens",
}
HELP = f"""agentrl plan [gpu=KIND] [price=N] [prompt=N completion=N | like=RUN] [--json] [key=value ...]

Says what the run of the overrides would cost on hardware.processes GPUs: time, memory of a GPU, GPU-hours, and the
price. Nothing is loaded, and no GPU is needed. E.g. agentrl plan gpu=h100 price=2.5 model=qwen3-8b bench=toolhop
hardware=multi_gpu hardware.accelerate_config=fsdp2 prompt=1500 completion=800. The exit code is 1 if it does not fit.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    own, overrides = split_keys([argument for argument in arguments if argument != "--json"], KEYS)
    config = compose(overrides)
    require(
        config.hardware.device == "cuda",
        "hardware",
        config.hardware.name,
        "is no GPU; plan for hardware=gpu, multi_gpu or slurm",
    )
    if config.hardware.nodes > 1:
        config.hardware.slurm.submit = True  # no machine is asked which one it is, and where the others are
    validate(config)
    kind = own.get("gpu", "h100").lower()
    require(kind in GPUS, "gpu", kind, f"is not known{suggest(kind, list(GPUS))}")
    mfu = _number(own, "mfu", "must be a number between 0 and 1, e.g. 0.4", below=1.0)
    lengths, price = _lengths(own, config), _number(own, "price")
    plan = make_plan(config, find_network(config), GPUS[kind], lengths, price, mfu)
    if "--json" in arguments:
        print(json.dumps(asdict(plan), indent=2))
    else:
        print_plan(plan, config, make_console())
    return int(bool(plan.problems))


def find_network(config: Config) -> Network:
    """Return the network of a run; ask the hub for its configuration, never for its weights. Raises UserError."""
    found = known_network(config) or fetch_network(config.model.path, config.model.revision)
    if found is None:
        raise UserError(f"model.path={config.model.path}: its config.json describes no decoder that agentrl plan knows")
    return found


def _lengths(own: dict[str, str], config: Config) -> Lengths | None:
    """Return the lengths that the user expects, None without any."""
    if "like" in own:
        clash = sorted({"prompt", "completion", "trace"} & set(own))
        require(not clash, "like", own["like"], f"gives the lengths already; leave out {', '.join(clash)}")
        return _within_budget(read_lengths(Path(own["like"]).expanduser(), group_size(config)), own, config)
    tokens = {name: _number(own, name, "must be a number of tokens, at least 1", 1.0) for name in LENGTHS}
    prompt, completion, trace = tokens.values()
    if prompt is None and completion is None and trace is None:
        return None
    if prompt is None or completion is None:
        raise UserError("give both prompt=... and completion=..., or like=RUN")
    expected = completion if trace is None else trace
    return _within_budget(Lengths(prompt, completion, completion, expected, group_size(config)), own, config)


def _within_budget(lengths: Lengths, own: dict[str, str], config: Config) -> Lengths:
    """Return the lengths. Raise UserError if the keys of the run forbid such episodes."""
    most = longest(config)
    if "trace" not in own:  # it is a guess
        lengths = replace(lengths, trace=min(lengths.trace, most.trace))
    for name, key in LENGTHS.items():
        expected, limit = getattr(lengths, name), getattr(most, name)
        if name == "trace" and hasattr(config.algo, "trace"):
            key = "algo.trace.max_tokens"
        require(
            expected <= limit, name, f"{expected:,.0f}", f"is above {key}={limit:,.0f}; raise that key, or expect less"
        )
    return lengths


def _number(
    own: dict[str, str], name: str, rule: str = "must be a number above 0", least: float = 0.0, below: float = math.inf
) -> float | None:
    if name not in own:
        return None
    try:
        value = float(own[name])
    except ValueError:
        value = -1.0
    require(max(least, math.ulp(0.0)) <= value < below, name, own[name], rule)
    return value


def print_plan(plan: Plan, config: Config, console: Console) -> None:
    """Print time and cost as a table with a column for each assumption on lengths, then memory, then what fits."""
    servers = f" and {plan.servers} for vLLM" if plan.servers else ""
    title = f"{config.algo.name}, {config.model.path}, {config.bench.name}: {plan.trainers} x {plan.gpu.title}{servers}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in plan.costs:
        table.add_column(name, justify="right")
    for label, *cells in _rows(plan):
        table.add_row(label, *cells)
    console.print(table)
    memory = Table(title=f"Memory of a GPU, GiB; it has {plan.gpu.memory:g}", title_justify="left", show_header=False)
    for phase, parts in plan.memory.phases.items():
        memory.add_row(phase, describe_parts(parts))
    console.print(memory)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for problem in plan.problems:
        say(f"Does not fit: {problem}.")
    if plan.problems:
        say(
            "It fits with:"
            if plan.proposals
            else "No change that agentrl plan knows makes it fit; take a smaller model."
        )
    for proposal in plan.proposals:
        say(f"  {proposal}")
    if not plan.problems:
        say("It fits.")
    if "expected" not in plan.costs:
        say("At most: each episode uses its whole budget. prompt=... completion=..., or like=RUN, say what you expect.")
    if next(iter(plan.costs.values())).price is None:
        say("price=... (of a GPU-hour) adds the cost.")
    say("This is computed, not measured. docs/plan.md says how far it was checked.")


def _rows(plan: Plan) -> list[list[str]]:
    columns, steps = list(plan.costs.values()), plan.steps

    def row(label: str, cell: Callable[[Costs], str]) -> list[str]:
        return [label, *(cell(one) for one in columns)]

    parts: list[tuple[str, Callable[[Costs], float]]] = [
        ("sampling a rollout batch", lambda one: one.batch.sampling),
        ("old and reference log-probs", lambda one: one.batch.scoring),
        (FORWARD_BACKWARD, lambda one: one.batch.update),
        ("exchange between GPUs", lambda one: one.batch.exchange),
        ("optimizer", lambda one: one.batch.optimizer),
        ("rollout batch with its updates", lambda one: one.step),
        ("evaluation", lambda one: one.evaluation),
    ]
    rows = [row("tokens of prompt + episode", lambda one: f"{one.lengths.prompt:,.0f} + {one.lengths.completion:,.0f}")]
    for label, seconds in parts:
        if not any(map(seconds, columns)):  # e.g. an evaluation has no updates
            continue
        mfu = [f" (MFU {one.batch.mfu:.0%})" if label == FORWARD_BACKWARD else "" for one in columns]
        rows.append([label, *(duration(seconds(one)) + added for one, added in zip(columns, mfu, strict=True))])
    counts = f" of {_count(steps.rollout_batches, 'batch', 'es')}, {_count(steps.updates, 'update', 's')}"
    rows.append(row("run" + counts * (steps.updates > 0), lambda one: duration(one.seconds)))
    rows.append(row("GPU-hours", lambda one: _amount(one.gpu_hours, 1)))
    if columns[0].price is not None:
        rows.append(row("cost", lambda one: _amount(one.price or 0.0, 2)))
    return rows


def _count(number: int, word: str, plural: str) -> str:
    return f"{number:,} {word}{plural if number != 1 else ''}"


def _amount(value: float, digits: int) -> str:
    """Return a number with some digits behind the point, and a small one with its first two."""
    return f"{value:,.{digits}f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Return e.g. `12.3 s`, `4 min 30 s`, `7 h 12 min` or `3.5 days`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 2 * 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:,.1f} days"
