"""Benches of hierarchical instruction following, by the type of their configuration."""

from __future__ import annotations

from agentrl.benches.hif.base import SingleTurn
from agentrl.config import benches as config


def load_hif(bench: config.HifConfig) -> SingleTurn:
    """The suite that `bench` describes; its data is read when tasks are asked for."""
    if isinstance(bench, config.VerIH):
        from agentrl.benches.hif.verih import VerIHBench

        return VerIHBench(bench)
    if isinstance(bench, config.SysIFEval):
        from agentrl.benches.hif.sys_ifeval import SysIFEvalBench

        return SysIFEvalBench(bench)
    if isinstance(bench, config.TensorTrust):
        from agentrl.benches.hif.tensortrust import TensorTrustBench

        return TensorTrustBench(bench)
    if isinstance(bench, config.IHEval):
        from agentrl.benches.hif.iheval import IHEvalBench

        return IHEvalBench(bench)
    from agentrl.benches.hif import judged

    if isinstance(bench, config.SystemCheck):
        return judged.SystemCheckBench(bench)
    if isinstance(bench, config.RealGuardrails):
        return judged.RealGuardrailsBench(bench)
    return judged.PairsBench(bench)
