"""The benches. The class of a bench's keys names the bench to load."""

from __future__ import annotations

from agentrl.config.benches import CustomBench
from agentrl.config.traits import BenchKeys
from agentrl.core.bench import Bench
from agentrl.core.custom import load_attribute
from agentrl.core.errors import UserError
from agentrl.core.imports import import_by_name

METHODS = ("tasks", "size", "environment", "score", "reward", "expert_trace")


def load_bench(config: BenchKeys, sandbox: str = "auto") -> Bench:
    """Load the bench that `config` describes. It reads its data at the first call of `tasks`.

    `sandbox` is "auto" or "strict". "strict" raises UserError if tool code cannot be isolated completely.
    """
    if isinstance(config, CustomBench):
        return _own(config)
    bench_class = import_by_name(config.loads)
    bench: Bench = bench_class(config, sandbox == "strict") if config.runs_code else bench_class(config)
    return bench


def _own(config: CustomBench) -> Bench:
    """Load a user's bench. Raises UserError if a part of the contract is missing, or is not a method."""
    bench: Bench = load_attribute(config.path, "load")(config)
    lacking = [name for name in ("name", "solve_metric", *METHODS) if not hasattr(bench, name)]
    if lacking:
        raise UserError(
            f"bench.path={config.path}: the bench has no {', '.join(lacking)}; let its class inherit from "
            "agentrl.core.bench.Bench, and write the other parts (docs/extending.md)"
        )
    for name in METHODS:
        if not callable(getattr(bench, name)):
            raise UserError(
                f"bench.path={config.path}: the attribute {name} of the bench hides the method {name} of "
                "agentrl.core.bench.Bench; rename the attribute"
            )
    return bench
