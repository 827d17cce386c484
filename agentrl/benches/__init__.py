"""Benches by name."""

from __future__ import annotations

from agentrl.config.benches import Bfcl, CustomBench, Ftrl, HifConfig, Minihif, Minihop, ToolHop
from agentrl.core.bench import Bench
from agentrl.core.errors import UserError

MEMBERS = ("name", "solve_metric", "tasks", "size", "environment", "score", "reward", "expert_trace")


def load_bench(
    config: Minihop | ToolHop | Ftrl | Minihif | HifConfig | Bfcl | CustomBench, sandbox: str = "auto"
) -> Bench:
    """The bench that `config` describes; its data is read when tasks are asked for.

    `sandbox` is "auto" or "strict", which raises UserError where tool code would not be isolated completely.
    """
    strict = sandbox == "strict"
    if isinstance(config, Minihop):
        from agentrl.benches.minihop import MinihopBench

        return MinihopBench(config, strict)
    if isinstance(config, Minihif):
        from agentrl.benches.minihif import MinihifBench

        return MinihifBench(config)
    if isinstance(config, Ftrl):
        from agentrl.benches.ftrl import FtrlBench

        return FtrlBench(config, strict)
    if isinstance(config, HifConfig):
        from agentrl.benches.hif import load_hif

        return load_hif(config)
    if isinstance(config, Bfcl):
        from agentrl.benches.bfcl.bench import BfclBench

        return BfclBench(config)
    if isinstance(config, CustomBench):
        return _own(config)
    from agentrl.benches.toolhop import ToolHopBench

    return ToolHopBench(config, strict)


def _own(config: CustomBench) -> Bench:
    """The bench of a user's file. Raises UserError where it lacks a part of the contract."""
    from agentrl.core.custom import attribute_of

    bench: Bench = attribute_of(config.path, "load")(config)
    lacking = [name for name in MEMBERS if not hasattr(bench, name)]
    if lacking:
        raise UserError(
            f"bench.path={config.path}: the bench has no {', '.join(lacking)}; let its class inherit from "
            "agentrl.core.bench.Bench, and write what is left (docs/extending.md)"
        )
    return bench
