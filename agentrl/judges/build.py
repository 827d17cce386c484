"""Build the judge that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from agentrl.config.judges import DistilledJudge, EmbeddingJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.core.judge import Judge
from agentrl.judges.cache import VerdictCache
from agentrl.judges.classifiers import load_classifier
from agentrl.judges.rubric_judge import RubricJudge

LOG = "judge.jsonl"  # in the run directory: counts of verdicts, tokens and cost after each batch


def build_judge(config: Config, payer: str, device: str = "cpu") -> Judge | None:
    """Build the judge of `config.judge`; None for judge=program, where only the bench's own program grades.

    `payer` names whose budget is spent. It is the run directory, so a resumed run continues with what is left. `device`
    is where language models that judge in this process compute. A bench whose replies a classifier grades has its
    prompt asked, and no rubric.

    Raises:
        UserError: a rubric, cache or model cannot be read, a key is not set or is refused, or no server answers at the
            address.
    """
    judge, classifier = config.judge, config.bench.classified_by()
    form = None if classifier is None else load_classifier(classifier).form
    if isinstance(judge, DistilledJudge):
        from agentrl.judges.distilled import RewardModelJudge

        return RewardModelJudge(judge, device)
    if isinstance(judge, EmbeddingJudge):
        from agentrl.judges.embedding import SimilarityJudge

        return SimilarityJudge(judge)
    if isinstance(judge, OpenAIJudge):
        from agentrl.judges.openai import EndpointJudge

        endpoint = EndpointJudge(judge, open_judge_cache(judge, config.runs_dir), payer, form)
        endpoint.check()
        return _log_to(endpoint, payer)
    if isinstance(judge, LocalJudge):
        from agentrl.judges.local import InProcessJudge

        return _log_to(InProcessJudge(judge, open_judge_cache(judge, config.runs_dir), payer, device, form), payer)
    return None


def _log_to(judge: RubricJudge, payer: str) -> RubricJudge:
    if Path(payer).is_dir() and os.environ.get("RANK", "0") == "0":  # only one process writes
        judge.log = Path(payer) / LOG
    return judge


def open_judge_cache(judge: OpenAIJudge | LocalJudge, runs_dir: str) -> VerdictCache:
    """Open the cache that `judge` names, by default judge.sqlite in `runs_dir`."""
    return VerdictCache(judge.cache or Path(runs_dir).expanduser() / "judge.sqlite")
