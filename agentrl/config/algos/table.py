"""The algorithms: the name of each, and the class of its keys."""

from __future__ import annotations

from agentrl.config.algos import evaluate, grpo, pact, sides, traced
from agentrl.config.traits import MethodKeys

ALGOS: dict[str, type[MethodKeys]] = {
    **pact.ALGOS,
    **grpo.ALGOS,
    **traced.ALGOS,
    **sides.ALGOS,
    **evaluate.ALGOS,
    "custom": grpo.CustomAlgo,
}
