"""The interface of a rollout engine: episodes in, token-exact trajectories out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentrl.core.bench import Environment, Task
from agentrl.core.trajectory import Trajectory


@dataclass(frozen=True)
class Episode:
    """One task with its own environment. Two rollouts never share an episode."""

    task: Task
    environment: Environment


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Temperature 0 decodes greedily."""

    temperature: float
    top_p: float = 1.0


class RolloutEngine(Protocol):
    """Plays episodes with the current policy."""

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """Play the episodes and return one trajectory for each, in order. `decoding=None` uses the training settings.

        Sampled tokens are returned as ids and are never tokenised again. The failure of a tool is an observation.
        """
        ...
