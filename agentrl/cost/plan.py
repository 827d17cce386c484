"""Plan a run on GPUs of a kind: its time, its memory, its price, and what fits where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.cache import cache_budget
from agentrl.config.networks import Network
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.config.sequences import Lengths
from agentrl.config.vllm import samples_with_vllm
from agentrl.core.errors import UserError
from agentrl.cost.estimate import Estimate, estimate, longest
from agentrl.cost.gpus import GPUS, Gpu
from agentrl.cost.memory import COLOCATED, GIB, SERVED, Memory, Shares, estimate_memory, vllm_needs
from agentrl.cost.time import Batch, Clock
from agentrl.store.durable import read_records

SHOWN = 8  # number of proposals
FILLED = 0.95  # share of a GPU's memory that tensors can fill
GAPS = f"{1 - FILLED:.0%} are left for gaps between tensors"
SHARED = "hardware.accelerate_config=fsdp2"


@dataclass(frozen=True)
class Costs:
    """What a run costs if its episodes have these lengths."""

    lengths: Lengths
    batch: Batch
    step: float  # seconds of a rollout batch with all its updates
    evaluation: float  # seconds of the evaluations before and after training
    seconds: float  # of the run
    gpu_hours: float
    price: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a run on GPUs of one kind."""

    gpu: Gpu
    trainers: int  # GPUs that train
    servers: int  # GPUs of the vLLM server
    steps: Estimate
    memory: Memory
    problems: list[str]  # why it does not fit; empty if it does
    costs: dict[str, Costs]  # expected, if lengths are known, and at most
    proposals: list[str] = field(default_factory=list)  # changes with which it fits


def make_plan(
    config: Config,
    network: Network,
    gpu: Gpu,
    lengths: Lengths | None = None,
    price: float | None = None,
    mfu: float | None = None,
) -> Plan:
    """Plan a run. `lengths` are those that its episodes are expected to have, `price` that of a GPU-hour."""
    if network.mixture:
        raise UserError("agentrl plan knows networks without experts alone; a mixture of experts costs less than them")
    steps, clock = estimate(config), Clock(config, network, gpu, mfu)
    serves = samples_with_vllm(config) and config.vllm.mode == "server"
    trainers, servers = config.hardware.processes, config.vllm.tensor_parallel if serves else 0
    costs = {}
    for name, expected in (("expected", lengths), ("at most", longest(config))):
        if expected is not None:
            costs[name] = _costs(config, clock, steps, expected, trainers + servers, price)
    memory = estimate_memory(config, network, gpu.memory * GIB)
    problems = list(find_problems(config, network, gpu, memory))
    proposals = list(propose(config, network, gpu)) if problems else []
    return Plan(gpu, trainers, servers, steps, memory, problems, costs, proposals)


def _costs(config: Config, clock: Clock, steps: Estimate, lengths: Lengths, gpus: int, price: float | None) -> Costs:
    batch = clock.batch(lengths)
    step = max(batch.sampling, batch.training) if config.rollout.ahead else batch.sampling + batch.training
    single = Lengths(lengths.prompt, lengths.completion, lengths.sampled, lengths.trace)
    episodes = steps.eval_episodes / config.hardware.processes
    remote = isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    evaluation = 0.0 if remote else clock.sampling(episodes, single, config.eval.batch)
    before = config.algo.sampled_before(steps.train_tasks, steps.sequences) * config.rollout.num_generations
    seconds = steps.rollout_batches * step + evaluation + clock.sampling(before, lengths)
    hours = seconds / 3600 * gpus
    return Costs(lengths, batch, step, evaluation, seconds, hours, None if price is None else hours * price)


def find_problems(config: Config, network: Network, gpu: Gpu, memory: Memory) -> Iterator[str]:
    """Yield the reasons for which a run does not fit on GPUs of a kind."""
    have = gpu.memory * GIB
    for phase, parts in memory.phases.items():
        if (needed := sum(parts.values())) > FILLED * have:
            yield f"{phase} needs {needed / GIB:.1f} GiB, and a GPU has {gpu.memory:g} GiB ({GAPS})"
    if samples_with_vllm(config):
        server = config.vllm.mode == "server"
        share = _vllm_share(config)
        weights, context = vllm_needs(config, network)
        if weights + context > share * have:
            where = "the vLLM server" if server else "vLLM beside the trainer"
            yield (
                f"{where} needs {(weights + context) / GIB:.1f} GiB for its weights and one longest episode, and "
                f"vllm.memory={share:g} gives it {share * gpu.memory:.1f} GiB"
            )


@dataclass(frozen=True)
class Change:
    """A change of a configuration, in the words that a user would type. Of a kind, a higher level needs more."""

    words: str
    kind: str
    level: float
    apply: Callable[[Config], None]
    gpu: Gpu | None = None  # the GPUs that it takes instead


def propose(config: Config, network: Network, gpu: Gpu) -> Iterator[str]:
    """Yield changes with which a run fits, each with the memory that it then needs; those of fewest keys come first.

    Changes are left out if a part of them, or less of the same kinds, is enough.
    """
    enough: list[tuple[Change, ...]] = []
    for count in (1, 2, 3):
        for chosen in combinations(list(_changes(config, gpu)), count):
            kinds = {change.kind: change.level for change in chosen}
            less = (all(kinds.get(one.kind, -1) >= one.level for one in found) for found in enough)
            if len(kinds) < count or len(enough) >= SHOWN or any(less):
                continue
            changed = config.model_copy(deep=True)
            for change in chosen:
                change.apply(changed)
            try:
                validate(changed)
            except UserError:  # the keys do not go together
                continue
            taken = next((change.gpu for change in chosen if change.gpu), gpu)
            memory = estimate_memory(changed, network, taken.memory * GIB)
            if not any(find_problems(changed, network, taken, memory)):
                enough.append(chosen)
                yield f"{memory.most / GIB:.0f} GiB: {' '.join(one.words for one in chosen)}"


def _changes(config: Config, gpu: Gpu) -> Iterator[Change]:
    """Yield the changes that may help. Later ones cost more, or change the result."""
    vllm, algo = config.vllm, config.algo
    if vllm.mode == "colocate" and not vllm.sleep:
        yield Change("vllm.sleep=true", "sleep", 1, _set("vllm", "sleep", True))
    if algo.packs and config.trainer.engine != "compiled":
        yield Change("trainer.engine=compiled", "engine", 1, _set("trainer", "engine", "compiled"))
    for size in (16384, 8192, 4096):
        if config.trainer.tokens_per_batch > size:
            words, change = f"trainer.tokens_per_batch={size}", _set("trainer", "tokens_per_batch", size)
            yield Change(words, "passes", 1 / size, change)
    if not samples_with_vllm(config) and cache_budget(config.rollout) > 32768:
        yield Change("rollout.cache_tokens=32768", "cache", 1, _set("rollout", "cache_tokens", 32768))
    if config.eval.before and algo.trains:
        yield Change("eval.before=false", "evaluation", 1, _set("eval", "before", False))
    if algo.adapts and not config.model.lora.enabled:
        yield Change("model/lora=on", "lora", 1, _turn_adapters_on)
    processes = config.hardware.processes
    several = "hardware=multi_gpu " if config.hardware.name == "gpu" else ""
    if algo.trains:
        for count in (2, 4, 8, 16, 32, 64):
            if count > processes:
                words = f"{several}hardware.processes={count} {SHARED}"
                yield Change(words, "shared", count, _share(count))
            elif count == processes and Shares.of(config).weights == 1:
                yield Change(SHARED, "shared", count, _share(count))
    if samples_with_vllm(config):
        shares = (SERVED,) if vllm.mode == "server" else (0.2, COLOCATED, 0.45, 0.6)
        for distance, share in sorted((abs(math.log(share / _vllm_share(config))), share) for share in shares):
            if distance > 0:
                yield Change(f"vllm.memory={share:g}", "share", distance, _set("vllm", "memory", share))
        for size in (2, 4, 8):
            if size > vllm.tensor_parallel:
                change = _set("vllm", "tensor_parallel", size)
                yield Change(f"vllm.tensor_parallel={size}", "split", size, change)
    if vllm.mode == "colocate" and algo.rollouts:
        yield Change("vllm.mode=server (on GPUs of its own)", "server", 1, _set("vllm", "mode", "server"))
    if algo.measures_reference() and hasattr(algo, "kl_coef") and not config.model.lora.enabled:
        yield Change("algo.kl_coef=0 (another loss)", "reference", 1, _set("algo", "kl_coef", 0.0))
    for name, kind in GPUS.items():
        if kind.memory > gpu.memory and kind.flops >= gpu.flops:
            yield Change(f"gpu={name}", "gpu", kind.memory, lambda one: None, kind)


def _vllm_share(config: Config) -> float:
    """The share of a GPU that vLLM takes."""
    return config.vllm.memory or (SERVED if config.vllm.mode == "server" else COLOCATED)


def _set(group: str, name: str, value: object) -> Callable[[Config], None]:
    return lambda config: setattr(getattr(config, group), name, value)


def _turn_adapters_on(config: Config) -> None:
    config.model.lora.enabled = True


def _share(count: int) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        config.hardware.processes, config.hardware.accelerate_config = count, "fsdp2"

    return change


def read_lengths(run: Path, rollouts: int) -> Lengths:
    """Return the mean lengths of the episodes in a run's rollouts.jsonl. Raises UserError if there are none."""
    file = run / "rollouts.jsonl"
    if not file.is_file():
        raise UserError(f"like={run}: no rollouts.jsonl is there; name the directory of a run that has sampled")
    records = read_records(file)
    for number, one in enumerate(records, 1):
        if not all(isinstance(one.get(name), list) for name in ("prompt_ids", "completion_ids", "policy_mask")):
            raise UserError(f"like={run}: record {number} of rollouts.jsonl is no episode; name the directory of a run")
    if not records:
        raise UserError(f"like={run}: rollouts.jsonl is empty; name a run that has played a batch")

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    completion = mean([len(one["completion_ids"]) for one in records])
    traces = [float(len(one["sft"]["tokens"])) for one in records if one.get("sft")]
    return Lengths(
        prompt=mean([len(one["prompt_ids"]) for one in records]),
        completion=completion,
        sampled=mean([sum(one["policy_mask"]) for one in records]),
        trace=mean(traces) if traces else completion,
        rollouts=rollouts,
    )
