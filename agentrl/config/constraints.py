"""The keys of a constraint on the mean of what a reply or an episode is measured by."""

from __future__ import annotations

from typing import ClassVar, Literal

from agentrl.config.key import Group, key


class Constraint(Group):
    """A constraint of HIPO."""

    sign: ClassVar[int] = 1
    bound_label: ClassVar[str] = "tau"

    name: str = key("Name of the constraint in logs and checkpoints.", min_length=1)
    reward: Literal["sys", "user"] = key("Reward whose mean must reach the threshold.")
    kind: Literal["conflict", "aligned"] | None = key("Kind of prompts whose replies count; null counts all.")
    threshold: float = key("tau: the mean reward to reach.", ge=0, le=1, hint=", as rewards do")
    initial: float = key("Multiplier lambda before the first update; at most dual.cap.", ge=0)

    @property
    def label(self) -> str:
        """What is measured, in words."""
        return f"r_{self.reward}"


class EpisodeConstraint(Group):
    """A constraint of PACT. What is bounded from above is measured with the other sign."""

    bound_label: ClassVar[str] = "its bound"

    name: str = key("Name of the constraint in logs and checkpoints.", min_length=1)
    measure: str = key(
        "What is bounded on average: calls, the number of calls of an episode; or a metric of the bench's score."
    )
    side: Literal["at_most", "at_least"] = key(
        "What the bound is of the mean.", means=("an upper bound", "a lower bound")
    )
    bound: float = key("The bound, in the units of the measure.")
    initial: float = key("Multiplier lambda before the first update; at most dual.cap.", ge=0)

    @property
    def sign(self) -> int:
        """1 for a lower bound, -1 for an upper bound."""
        return 1 if self.side == "at_least" else -1

    @property
    def threshold(self) -> float:
        """The bound as a lower bound of what is measured with its sign."""
        return self.sign * self.bound

    @property
    def label(self) -> str:
        """What is measured, in words."""
        return self.measure
