"""Benches by name."""

from __future__ import annotations

from agentrl.config.benches import Bfcl, CustomBench, Ftrl, HifConfig, Minihif, Minihop, ToolHop
from agentrl.core.bench import Bench


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
        from agentrl.core.custom import attribute_of

        bench: Bench = attribute_of(config.path, "load")(config)
        return bench
    from agentrl.benches.toolhop import ToolHopBench

    return ToolHopBench(config, strict)
