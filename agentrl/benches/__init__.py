"""The benches, each loaded by the class of its keys."""

from __future__ import annotations

from agentrl.config.benches import CustomBench
from agentrl.config.traits import BenchKeys
from agentrl.core.bench import Bench
from agentrl.core.custom import attribute_of
from agentrl.core.declared import declared
from agentrl.core.errors import UserError

METHODS = ("tasks", "size", "environment", "score", "reward", "expert_trace")


def load_bench(config: BenchKeys, sandbox: str = "auto") -> Bench:
    """The bench that `config` describes; its data is read when tasks are asked for.

    `sandbox` is "auto" or "strict", which raises UserError where tool code would not be isolated completely.
    """
    if isinstance(config, CustomBench):
        return _own(config)
    bench_class = declared(config.loads)
    bench: Bench = bench_class(config, sandbox == "strict") if config.runs_code else bench_class(config)
    return bench


def _own(config: CustomBench) -> Bench:
    """A user's bench. Raises UserError where it lacks a part of the contract or uses its name otherwise."""
    bench: Bench = attribute_of(config.path, "load")(config)
    lacking = [name for name in ("name", "solve_metric", *METHODS) if not hasattr(bench, name)]
    if lacking:
        raise UserError(
            f"bench.path={config.path}: the bench has no {', '.join(lacking)}; let its class inherit from "
            "agentrl.core.bench.Bench, and write what is left (docs/extending.md)"
        )
    for name in METHODS:
        if not callable(getattr(bench, name)):
            raise UserError(
                f"bench.path={config.path}: {name} of the bench is a method of agentrl.core.bench.Bench; give the "
                "attribute of that name another one"
            )
    return bench
