"""Which engine scores: the packed one, or the padded one where a model cannot be packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.sequence import Engine


def scoring_engine(name: str, models: Sequence[Any], router: bool, say: Callable[[str], None]) -> Engine:
    """The engine `name` (packed or padded) for models that are scored alike; says so where it takes the other one.

    router: the loss of a mixture of experts' router is trained on.
    """
    if name == "padded":
        return PaddedEngine()
    for model in models:
        if reason := why_not_packed(model, router):
            say(f"trainer.engine=padded is taken, since this model cannot be packed: {reason}")
            return PaddedEngine()
    engine = PackedEngine()
    for model in models:
        engine.prepare(model)
    return engine
