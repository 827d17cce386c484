"""Estimate what a run will cost from its configuration alone: upper bounds of steps, sequences, tokens and memory.

Nothing is loaded and no hub is asked. Sizes come from a table or from a local checkpoint's headers. The memory leaves
out activations, because they depend on lengths that only the run will show.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentrl.benches import load_bench
from agentrl.config.algos import Pact
from agentrl.config.benches import CustomBench
from agentrl.config.cache import BYTES, cached_bytes, most_cached
from agentrl.config.constraints import EpisodeConstraint
from agentrl.config.rules.batches import group_size
from agentrl.config.schema import Config
from agentrl.config.vllm import samples_with_vllm, serve_command
from agentrl.core.bench import Bench, Task
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory
from agentrl.traces.files import read_traces

# Number of parameters by hub id, from the model cards.
KNOWN_PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 0.49e9,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54e9,
    "Qwen/Qwen2.5-3B-Instruct": 3.09e9,
    "Qwen/Qwen2.5-7B-Instruct": 7.61e9,
    "Qwen/Qwen3-0.6B": 0.6e9,
    "Qwen/Qwen3-1.7B": 1.7e9,
    "Qwen/Qwen3-4B": 4.0e9,
    "Qwen/Qwen3-8B": 8.2e9,
    "Qwen/Qwen3.5-0.8B": 0.8e9,
    "Qwen/Qwen3.5-2B": 2.0e9,
    "Qwen/Qwen3.5-4B": 4.0e9,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.135e9,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.362e9,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71e9,
    "google/gemma-3-270m-it": 0.27e9,
    "LiquidAI/LFM2-350M": 0.35e9,
    "microsoft/Phi-3-mini-128k-instruct": 3.8e9,
    "microsoft/Phi-4-mini-instruct": 3.8e9,
    "meta-llama/Llama-3.2-1B-Instruct": 1.23e9,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21e9,
}
LORA_SHARE = 0.01  # adapters have about this share of the weights, at the usual ranks
CACHE = "KV cache"  # keys and values while this process samples


@dataclass(frozen=True)
class Estimate:
    """Upper bounds; None if the size of the model is not known here."""

    train_tasks: int
    rollout_batches: int
    updates: int
    sequences: int  # rollouts, or expert traces for SFT
    rollout_tokens: int  # sampled and observed tokens, if every rollout uses its full budget
    trained_tokens: int  # tokens of the forward and backward passes, prompts included
    eval_episodes: int
    parameters: float | None
    memory_gb: dict[str, float] | None  # per process, by part, see `memory`


def estimate(config: Config) -> Estimate:
    """Estimate the cost of `config`."""
    trainer, rollout, k = config.trainer, config.rollout, group_size(config)
    trains, bench = config.algo.trains, load_bench(config.bench)
    tasks = bench.size("train") if trains else 0
    size = bench.size("test")
    updates_per_batch = trainer.prompts_per_batch // trainer.minibatch_prompts
    if trainer.max_steps > 0:
        updates = trainer.max_steps
    else:
        updates = math.ceil(trainer.epochs * max(tasks // trainer.prompts_per_batch, 1)) * updates_per_batch
    batches = math.ceil(updates / updates_per_batch)
    sequences = updates * trainer.minibatch_prompts * k
    row = rollout.max_prompt_tokens + rollout.max_completion_tokens
    trained = sequences * row + config.algo.trace_tokens(updates * trainer.minibatch_prompts, sequences, row)
    sampled = batches * trainer.prompts_per_batch * k if config.algo.rollouts else 0
    if not trains:
        updates = batches = sequences = trained = 0
    sampled += config.algo.sampled_before(tasks, sequences) * rollout.num_generations
    test = min(size, config.eval.limit or size)
    parameters = count_parameters(config)
    return Estimate(
        train_tasks=tasks,
        rollout_batches=batches,
        updates=updates,
        sequences=sequences,
        rollout_tokens=sampled * rollout.max_completion_tokens,
        trained_tokens=trained,
        eval_episodes=test * config.eval.samples * (config.eval.before + config.eval.after),
        parameters=parameters,
        memory_gb=None if parameters is None else memory(config, parameters),
    )


def memory(config: Config, parameters: float) -> dict[str, float]:
    """Return the GB for each process without sharding: weights, gradients, Adam's two moments, a reference model, and
    the KV cache of sampling.

    Only DPO and a KL term need the reference. The cache is 0 if the size of a token is not known.
    """
    weight = parameters * BYTES[config.model.dtype] / 2**30
    cached = most_cached(config) * (cached_bytes(config) or 0) / 2**30
    if not config.algo.trains:
        return {"weights": weight, CACHE: cached}
    lora = config.model.lora.enabled
    trained = weight * (LORA_SHARE if lora else 1)
    # With adapters the reference is the same network with the adapters switched off.
    reference = weight if config.algo.measures_reference() and not lora else 0.0
    return {"weights": weight, "gradients": trained, "optimizer": 2 * trained, "reference": reference, CACHE: cached}


def most_memory(parts: dict[str, float]) -> float:
    """Return the GB that are needed at once: while a process samples it has no gradients, and then no cache."""
    return sum(parts.values()) - min(parts.get("gradients", 0.0), parts[CACHE])


def check_tasks(config: Config) -> None:
    """Check that the files of bench and traces can be read, that no split is empty, that the tasks fill a batch,
    and that the bench has the metrics that constraints bound.

    A user's own Python file is not checked here; the run checks it.

    Raises:
        UserError: one of these is not so; the message is the bench's own if it has one.
    """
    if config.traces is not None:
        read_traces(Path(config.traces))
    if isinstance(config.bench, CustomBench):
        return
    bench, trains = load_bench(config.bench), config.algo.trains
    sizes = {split: bench.size(split) for split in (("train", "test") if trains else ("test",))}
    for split, size in sizes.items():
        if not size:
            bench.tasks(split)  # the bench may give a better reason
            raise UserError(
                f"bench.path={config.bench.path} leaves no row for the {split} split; name a file with more rows, or "
                "change bench.test_fraction"
            )
    prompts = config.trainer.prompts_per_batch
    if trains and config.algo.rollouts and sizes["train"] < prompts:
        raise UserError(f"trainer.prompts_per_batch={prompts}: there are {sizes['train']} training tasks; lower it")
    if isinstance(config.algo, Pact) and config.algo.constraints:
        check_measures(config.algo.constraints, bench, bench.tasks("train")[0])


def check_measures(constraints: Sequence[EpisodeConstraint], bench: Bench, task: Task) -> None:
    """Raise UserError if the bench lacks a metric that one of PACT's constraints bounds.

    The score of an empty episode of `task` shows which metrics the bench has.
    """
    if not constraints:
        return
    known = {"calls", *bench.score(task, Trajectory(task.id, [], [], [], [], [], [], [])).metrics}
    for index, one in enumerate(constraints):
        if one.measure not in known:
            raise UserError(
                f"algo.constraints.{index}.measure={one.measure}: bench={bench.name} has no such measure; "
                f"choose from {', '.join(sorted(known))}"
            )


def count_parameters(config: Config) -> float | None:
    """Return the number of parameters: from a local checkpoint, from the table for a known hub id, else None."""
    path = config.model.path
    if path.startswith("builtin:"):
        folder = Path(__file__).parents[1] / "tiny" / path.removeprefix("builtin:")
    else:
        folder = Path(path).expanduser()
    if folder.is_dir():
        counts = [safetensors_parameters(file) for file in folder.glob("*.safetensors")]
        known = [count for count in counts if count is not None]
        return float(sum(known)) if known else None
    return KNOWN_PARAMETERS.get(path)


def safetensors_parameters(file: Path) -> int | None:
    """Return the number of elements in a safetensors file, read from its header; None if the header is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):  # loading the model reports it
        return None


def format_gigabytes(gigabytes: float) -> str:
    """Format a size with three digits, and never as a power of ten."""
    return f"{gigabytes:.3g}" if gigabytes < 999.5 else f"{gigabytes:,.0f}"


def print_estimate(config: Config, console: Console) -> None:
    """Print the estimate as a table, and what it leaves out."""
    result = estimate(config)
    rows = [
        ("training tasks, at most", f"{result.train_tasks:,}"),
        ("rollout batches" if config.algo.rollouts else "batches", f"{result.rollout_batches:,}"),
        ("optimizer updates", f"{result.updates:,}"),
        ("sequences trained on", f"{result.sequences:,}"),
        ("rollout tokens, at most", f"{result.rollout_tokens:,}"),
        ("tokens through the update, at most", f"{result.trained_tokens:,}"),
        ("evaluation episodes", f"{result.eval_episodes:,}"),
    ]
    if result.parameters is None or result.memory_gb is None:
        rows.append(("memory", "unknown: the size of this model is not known before it is loaded"))
    else:
        parts = ", ".join(f"{name} {format_gigabytes(size)}" for name, size in result.memory_gb.items() if size)
        rows.append(("parameters", f"{result.parameters:,.0f}"))
        needed, known = format_gigabytes(most_memory(result.memory_gb)), cached_bytes(config) is not None
        more = "activations" if known or not most_cached(config) else "activations + KV cache"
        rows.append(("memory per process, GB", f"{needed} at once ({parts}) + {more}"))
    table = Table(title="Estimate (from the configuration; nothing was measured)", show_header=False)
    for label, value in rows:
        table.add_row(label, value)
    console.print(table)
    if samples_with_vllm(config) and config.vllm.mode == "server" and not config.hardware.submits:
        console.print(f"Start the server first: {serve_command(config)}", markup=False, highlight=False, soft_wrap=True)
