"""The parts from which a method without rollouts builds its trainer."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from agentrl.chat.format import ChatFormat
from agentrl.config.schema import Config
from agentrl.core.bench import Bench, ExpertTraces, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import RolloutEngine
from agentrl.core.judge import Judge
from agentrl.core.stop import StopRequest
from agentrl.store.run import RunDirectory


@dataclass(frozen=True)
class Parts:
    """The argument of the function that builds the trainer. The method's class of keys names that function."""

    config: Config
    run: RunDirectory
    bench: Bench
    chat: ChatFormat
    model: PreTrainedModel
    tasks: list[Task]  # tasks of the training split
    engine: RolloutEngine  # plays episodes with `model`
    console: RunConsole
    judge: Judge | None
    expert_trace: ExpertTraces
    stop: StopRequest
