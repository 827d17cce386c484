"""Benches by name."""

from __future__ import annotations

from agentrl.benches.base import Bench
from agentrl.config.benches import Ftrl, Minihop, ToolHop


def load_bench(config: Minihop | ToolHop | Ftrl) -> Bench:
    """The bench that `config` describes; its data is read when tasks are asked for."""
    if isinstance(config, Minihop):
        from agentrl.benches.minihop import MinihopBench

        return MinihopBench(config)
    if isinstance(config, Ftrl):
        from agentrl.benches.ftrl import FtrlBench

        return FtrlBench(config)
    from agentrl.benches.toolhop import ToolHopBench

    return ToolHopBench(config)
