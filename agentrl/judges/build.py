"""The judge that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from agentrl.config.judges import DistilledJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.core.judge import Judge
from agentrl.judges.cache import VerdictCache
from agentrl.judges.rubric_judge import RubricJudge

LOG = "judge.jsonl"  # in the run directory: verdicts, tokens and cost after each batch


def build_judge(config: Config, payer: str, device: str = "cpu") -> Judge | None:
    """The judge of `config.judge`, ready to be asked; None for judge=program, where the bench grades alone.

    `payer` names whose budget is spent: the run directory, so that a resumed run goes on with what is left. `device` is
    where judges that are models in this process compute.

    Raises:
        UserError: rubric, cache or model that cannot be read, a key that is not set or refused, nobody at the address.
    """
    judge = config.judge
    if isinstance(judge, DistilledJudge):
        from agentrl.judges.distilled import RewardModelJudge

        return RewardModelJudge(judge, device)
    if isinstance(judge, OpenAIJudge):
        from agentrl.judges.openai import EndpointJudge

        endpoint = EndpointJudge(judge, cache_of(judge, config.runs_dir), payer)
        endpoint.check()
        return _log_to(endpoint, payer)
    if isinstance(judge, LocalJudge):
        from agentrl.judges.local import InProcessJudge

        return _log_to(InProcessJudge(judge, cache_of(judge, config.runs_dir), payer, device), payer)
    return None


def _log_to(judge: RubricJudge, payer: str) -> RubricJudge:
    if Path(payer).is_dir() and os.environ.get("RANK", "0") == "0":  # one process writes
        judge.log = Path(payer) / LOG
    return judge


def cache_of(judge: OpenAIJudge | LocalJudge, runs_dir: str) -> VerdictCache:
    """The cache that `judge` names, by default judge.sqlite in `runs_dir`."""
    return VerdictCache(judge.cache or Path(runs_dir).expanduser() / "judge.sqlite")
