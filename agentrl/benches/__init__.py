"""The benches, each loaded by the class of its keys."""

from __future__ import annotations

from agentrl.config.benches import CustomBench
from agentrl.config.traits import BenchKeys
from agentrl.core.bench import Bench
from agentrl.core.custom import attribute_of
from agentrl.core.declared import declared
from agentrl.core.errors import UserError

MEMBERS = ("name", "solve_metric", "tasks", "size", "environment", "score", "reward", "expert_trace")


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
    """The bench of a user's file. Raises UserError where it lacks a part of the contract."""
    bench: Bench = attribute_of(config.path, "load")(config)
    lacking = [name for name in MEMBERS if not hasattr(bench, name)]
    if lacking:
        raise UserError(
            f"bench.path={config.path}: the bench has no {', '.join(lacking)}; let its class inherit from "
            "agentrl.core.bench.Bench, and write what is left (docs/extending.md)"
        )
    return bench
