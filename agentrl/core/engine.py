"""The interface of a rollout engine: episodes in, token-exact trajectories out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentrl.core.bench import Environment, Task
from agentrl.core.trajectory import Trajectory


@dataclass(frozen=True)
class Episode:
    """One task with its own environment; never shared between two rollouts."""

    task: Task
    environment: Environment


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy."""

    temperature: float
    top_p: float = 1.0


class RolloutEngine(Protocol):
    """Plays episodes with the current policy."""

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """One trajectory per episode, in order. `decoding` None means the training setting.

        What was sampled is returned as ids and never re-tokenised; a tool's failure is an observation.
        """
        ...
