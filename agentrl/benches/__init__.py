"""Benches by name."""

from __future__ import annotations

from agentrl.benches.base import Bench
from agentrl.config.benches import Bfcl, Ftrl, HifConfig, Minihif, Minihop, ToolHop


def load_bench(config: Minihop | ToolHop | Ftrl | Minihif | HifConfig | Bfcl) -> Bench:
    """The bench that `config` describes; its data is read when tasks are asked for."""
    if isinstance(config, Minihop):
        from agentrl.benches.minihop import MinihopBench

        return MinihopBench(config)
    if isinstance(config, Minihif):
        from agentrl.benches.minihif import MinihifBench

        return MinihifBench(config)
    if isinstance(config, Ftrl):
        from agentrl.benches.ftrl import FtrlBench

        return FtrlBench(config)
    if isinstance(config, HifConfig):
        from agentrl.benches.hif import load_hif

        return load_hif(config)
    if isinstance(config, Bfcl):
        from agentrl.benches.bfcl.bench import BfclBench

        return BfclBench(config)
    from agentrl.benches.toolhop import ToolHopBench

    return ToolHopBench(config)
