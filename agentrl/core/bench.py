"""The contract of a bench: tasks, an environment for each, a score, a reward, and an expert trace where one exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.text import well_formed
from agentrl.core.trajectory import ToolCall, Trajectory


@dataclass(frozen=True)
class Task:
    """One item of a bench. `data` is the bench's own; nothing outside the bench reads it."""

    id: str
    prompt: list[dict[str, str]]  # chat messages
    tools: list[dict[str, Any]]  # JSON schemas: {"type": "function", "function": {...}}
    answer: str  # the reference answer
    cluster: str  # items that share a cluster are not independent (feeds clustered intervals)
    data: dict[str, Any] = field(default_factory=dict)
    golds: dict[str, list[str]] = field(default_factory=dict)  # tool name -> sub-answers its calls should return

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "tools", "answer", "cluster"):  # no tokenizer and no file takes half a character
            object.__setattr__(self, name, well_formed(getattr(self, name)))


@dataclass(frozen=True)
class Score:
    """Metrics of one trajectory. One that is not about this task is absent, and left out of its mean; so is a solve
    metric that the official rule leaves unset, and that counts 0. One that a judge failed to give is None.

    `groups` names the breakdowns that the item belongs to, e.g. {"hops": "3"}: summary.json repeats the results of
    each. They depend on the task alone.
    """

    metrics: Mapping[str, float | None]
    cluster: str
    groups: dict[str, str] = field(default_factory=dict)


class Environment(Protocol):
    """One episode's tools. Never shared between rollouts."""

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        """Execute one call; an error is an observation, never an exception."""
        ...


@runtime_checkable
class Reading(Protocol):
    """An environment that reads a turn as its bench's official code does; FTRL's rule reads those of the others."""

    def read(self, text: str) -> tuple[str, list[tuple[str, Any]]]:
        """Content and calls (name, arguments) of an assistant's raw text, whatever it holds."""
        ...


@runtime_checkable
class Conversation(Environment, Protocol):
    """An environment whose user speaks again: the episode goes on after an assistant turn without calls."""

    def next_message(self) -> str | None:
        """What the user says after an assistant turn without calls; None ends the episode."""
        ...

    def continue_episode(self) -> bool:
        """Told after the calls of each assistant turn; False ends the episode at once (a step limit)."""
        ...


class NoTools:
    """An episode without tools: a call that the model makes up is answered with an error."""

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        return ToolCall(turn, name, arguments, f"there is no tool {name!r}", error=True)


# What an episode earns: one number for all of it, one for each assistant turn, or one for each side by its name.
Reward = float | Sequence[float] | Mapping[str, float | None]


@runtime_checkable
class Bench(Protocol):
    """A benchmark that can be trained on and evaluated. A class that inherits from it has defaults for the rest."""

    name: str
    solve_metric: str  # the metric shown as "solve rate" while training

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        """Tasks of `split` ("train" or "test"); `limit` takes a seeded sample. Raises UserError on bad data."""
        ...

    def size(self, split: str) -> int:
        """Number of tasks in `split`, for checks and estimates; raises as `tasks` does. The default counts them.

        A bench that would have to download its data gives the published number instead.
        """
        return len(self.tasks(split))

    def environment(self, task: Task) -> Environment:
        """A fresh environment for one episode of `task`."""
        ...

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Official scoring of one finished episode."""
        ...

    def reward(self, task: Task, trajectory: Trajectory) -> Reward | None:
        """What a trainer rewards a finished episode with. The default, None, leaves it to the configured `reward`.

        One number is earned by the last assistant turn; a sequence has one number for each assistant turn. A bench with
        two sides (`TwoSided`) gives a number for each.
        """
        return None

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """h* of `task`, the expert's solution; None, the default, where the bench has none."""
        return None


@runtime_checkable
class TwoSided(Bench, Protocol):
    """A bench whose replies earn one reward from the system's side and one from the user's.

    Of `task.data`, trainers and evaluation may read `kind` ("conflict", "aligned", ...), and `system` and `user` (the
    two prompts).
    """

    def reward(self, task: Task, trajectory: Trajectory) -> Mapping[str, float | None]:
        """{"user": r_user, "sys": r_sys}, each in [0, 1]; None where no program can tell and a judge must.

        A side that is left out has no reward, and no judge is asked: the reply was cut before there was an answer.
        """
        ...

    def expert_response(self, task: Task) -> str | None:
        """A reply worth imitating, or None where the bench has none."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A bench that knows which calls solve a task, whether or not there is a trace of them."""

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        """The ground truth, in order: {"name", "arguments"} of every call that a right solution makes.

        {"name", "result"} stands for a call of which only the result is known.
        """
        ...


@runtime_checkable
class TranscriptBench(Protocol):
    """A bench that can score what was made elsewhere (`agentrl score`)."""

    name: str

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Official metrics of one line of a transcripts file, and why they are what they are where that needs saying.

        `record` names its row of the bench's file by "row" (0-based, whatever the splits) or "id". A metric is a
        number, None where the official code gives no verdict, or a list with one entry per instruction. Returns {} and
        what is wrong where the line cannot be scored. Never executes anything of the record; raises UserError where
        the bench's own file is bad.
        """
        ...


ExpertTraces = Callable[[Task], ExpertTrace | None]  # a bench's `expert_trace`, or what a caller takes in its place
Finished = Callable[[Task, Environment], None]
Play = Callable[[list[Task], Finished], None]  # plays one episode of each task, calls `finished` for those played


@runtime_checkable
class Preparing(Protocol):
    """A bench whose tasks need the policy to play something first."""

    def prepare(self, tasks: list[Task], play: Play, directory: Path) -> list[Task]:
        """The tasks as they are to be asked; what was played stays in `directory` and is not played again.

        A task is left out where an endpoint did not play what it builds on.
        """
        ...


def reference_calls(bench: Bench, task: Task) -> list[dict[str, Any]]:
    """What rewards compare calls with: the bench's ground truth, or else its own trace, never one given in."""
    if isinstance(bench, Referenced):
        return bench.reference_calls(task)
    trace = bench.expert_trace(task)
    return [] if trace is None else trace.calls


def has_own_reward(bench: Bench) -> bool:
    """Whether the bench rewards episodes by itself, in place of the configured reward."""
    return type(bench).reward is not Bench.reward
