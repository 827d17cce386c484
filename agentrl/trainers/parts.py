"""What a trainer is put together from."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from agentrl.chat.format import ChatFormat
from agentrl.config.schema import Config
from agentrl.core.bench import Bench, ExpertTraces, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import RolloutEngine
from agentrl.core.judge import Judge
from agentrl.store.run import RunDirectory


@dataclass(frozen=True)
class Parts:
    """For a method without rollouts, whose class of keys names a function that makes its trainer of these."""

    config: Config
    run: RunDirectory
    bench: Bench
    chat: ChatFormat
    model: PreTrainedModel
    tasks: list[Task]  # of the training split
    engine: RolloutEngine  # plays episodes with `model`
    console: RunConsole
    judge: Judge | None
    expert_trace: ExpertTraces
