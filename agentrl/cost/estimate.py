"""Estimate what a run will do from its configuration alone: upper bounds of steps, sequences, tokens and memory.

Nothing is loaded and no hub is asked. Sizes come from a table or from a local checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from agentrl.benches import load_bench
from agentrl.config.networks import known_network
from agentrl.config.rules.batches import group_size
from agentrl.config.schema import Config
from agentrl.config.sequences import Lengths, count_tokens
from agentrl.config.vllm import samples_with_vllm, serve_command
from agentrl.cost.memory import GIB, Memory, Parts, estimate_memory


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
    memory: Memory | None  # of a process


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
    trained = (
        updates * trainer.minibatch_prompts * count_tokens(config.algo.update_trees(longest(config)), packed=False)
    )
    sampled = batches * trainer.prompts_per_batch * k if config.algo.rollouts else 0
    if not trains:
        updates, batches, sequences, trained = 0, 0, 0, 0.0
    sampled += config.algo.sampled_before(tasks, sequences) * rollout.num_generations
    test = min(size, config.eval.limit or size)
    network = known_network(config)
    return Estimate(
        train_tasks=tasks,
        rollout_batches=batches,
        updates=updates,
        sequences=sequences,
        rollout_tokens=sampled * rollout.max_completion_tokens,
        trained_tokens=round(trained),
        eval_episodes=test * config.eval.samples * (config.eval.before + config.eval.after),
        parameters=None if network is None else network.parameters,
        memory=None if network is None else estimate_memory(config, network),
    )


def longest(config: Config) -> Lengths:
    """Return the largest lengths that the keys allow: every rollout uses its whole budget."""
    rollout = config.rollout
    completion = rollout.max_completion_tokens
    trace = config.algo.longest_trace(completion)
    return Lengths(rollout.max_prompt_tokens, completion, completion, trace, group_size(config))


def format_gigabytes(gigabytes: float) -> str:
    """Format a size with three digits, and never as a power of ten."""
    return f"{gigabytes:.3g}" if gigabytes < 999.5 else f"{gigabytes:,.0f}"


def describe_parts(parts: Parts) -> str:
    """Return e.g. `12.3 (weights 8, KV cache 4.3)`: the sum of some sizes and each of them, in GiB."""
    each = ", ".join(f"{name} {format_gigabytes(size / GIB)}" for name, size in parts.items())
    return f"{format_gigabytes(sum(parts.values()) / GIB)} ({each})"


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
    if result.parameters is None or result.memory is None:
        rows.append(("memory", "unknown: the size of this model is not known before it is loaded"))
    else:
        rows.append(("parameters", f"{result.parameters:,.0f}"))
        for phase, parts in result.memory.phases.items():
            rows.append((f"memory of a process, {phase}, GiB", describe_parts(parts)))
    table = Table(title="Estimate (from the configuration; nothing was measured)", show_header=False)
    for label, value in rows:
        table.add_row(label, value)
    console.print(table)
    if samples_with_vllm(config) and config.vllm.mode == "server" and not config.hardware.submits:
        console.print(f"Start the server first: {serve_command(config)}", markup=False, highlight=False, soft_wrap=True)
