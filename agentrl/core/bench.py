"""The contract of a bench: tasks, an environment for each task, a score, and maybe a reward and an expert trace.

An expert trace, written h*, is an expert's solution of a task (`core/expert_trace.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.judge import JudgeRequest, Verdict
from agentrl.core.text import replace_surrogates
from agentrl.core.trajectory import ToolCall, Trajectory


@dataclass(frozen=True)
class Task:
    """One item of a bench. Nothing outside the bench reads `data`, except three entries of a `TwoSided` bench."""

    id: str  # unique in its split
    prompt: list[dict[str, str]]  # chat messages
    tools: list[dict[str, Any]]  # JSON schemas: {"type": "function", "function": {...}}
    answer: str  # the reference answer
    cluster: str  # items that share a cluster are not independent; confidence intervals take this into account
    data: dict[str, Any] = field(default_factory=dict)
    golds: dict[str, list[str]] = field(default_factory=dict)  # tool name -> sub-answers that its calls should return

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "tools", "answer", "cluster"):  # tokenizers and files reject half a character
            object.__setattr__(self, name, replace_surrogates(getattr(self, name)))


@dataclass(frozen=True)
class Score:
    """Metrics of one trajectory.

    A metric that does not apply to the task is absent, and the task is left out of that metric's mean. The solve
    metric is the exception: the task counts 0 where the official rule gives no value. A metric that a judge failed to
    give is None.

    `groups` names the breakdowns that the item belongs to, e.g. {"hops": "3"}. summary.json repeats the results for
    each breakdown. They depend on the task alone.
    """

    metrics: Mapping[str, float | None]
    cluster: str
    groups: dict[str, str] = field(default_factory=dict)


class Environment(Protocol):
    """The tools of one episode. Two rollouts never share an environment.

    An environment may have two attributes that are True: `slow_tools` (`has_slow_tools`) and `independent_calls`
    (`has_independent_calls`).
    """

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        """Execute one call. An error becomes an observation; this method never raises."""
        ...


def has_slow_tools(environment: Environment) -> bool:
    """Whether its answers take long (a network, a long computation in another process).

    Its calls then run in a thread while other episodes are sampled. An environment without slow tools answers between
    two forward passes, so that equal seeds give equal batches.
    """
    return bool(getattr(environment, "slow_tools", False))


def has_independent_calls(environment: Environment) -> bool:
    """Whether no call changes what another call returns. Those of one turn then run side by side, in threads."""
    return bool(getattr(environment, "independent_calls", False))


@runtime_checkable
class Reading(Protocol):
    """An environment that reads a turn as the official code of its bench does. Other environments use FTRL's rule."""

    def read(self, text: str) -> tuple[str, list[tuple[str, Any]]]:
        """Return the content and the calls (name, arguments) of an assistant's raw text. Any text is accepted."""
        ...


@runtime_checkable
class Conversation(Environment, Protocol):
    """An environment whose user speaks again, so the episode goes on after an assistant turn without calls."""

    def next_message(self) -> str | None:
        """Return what the user says after an assistant turn without calls. None ends the episode."""
        ...

    def continue_episode(self) -> bool:
        """Called after the calls of each assistant turn. False ends the episode at once, e.g. at a step limit."""
        ...


class NoTools:
    """An episode without tools. A call that the model makes up gets an error as its observation."""

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        return ToolCall(turn, name, arguments, f"there is no tool {name!r}", error=True)


# What an episode earns: one number for the whole episode, one for each assistant turn, or one for each side by name.
Reward = float | Sequence[float] | Mapping[str, float | None]


@runtime_checkable
class Bench(Protocol):
    """A benchmark to train on and to evaluate on. Inherit from it to get the defaults of `size`, `reward` and
    `expert_trace`.
    """

    name: str
    solve_metric: str  # the metric shown as "solve rate" while training

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        """Return the tasks of `split` ("train" or "test"). `limit` takes a seeded sample of that many tasks.

        Raises UserError on bad data.
        """
        ...

    def size(self, split: str) -> int:
        """Return the number of tasks in `split`, for checks and estimates. The default counts the tasks.

        A bench that would have to download its data returns the published number instead. Raises as `tasks` does.
        """
        return len(self.tasks(split))

    def environment(self, task: Task) -> Environment:
        """Make a fresh environment for one episode of `task`."""
        ...

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Score one finished episode by the official rules."""
        ...

    def reward(self, task: Task, trajectory: Trajectory) -> Reward | None:
        """Reward a finished episode for training. The default, None, uses the configured `reward`.

        One number goes to the last assistant turn. A sequence has one number for each assistant turn. A bench with two
        sides (`TwoSided`) returns one number for each side.
        """
        return None

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return h*, the expert's solution of `task`. The default is None: the bench has no expert trace."""
        return None


@runtime_checkable
class TwoSided(Bench, Protocol):
    """A bench whose replies earn two rewards: one from the side of the system prompt, one from the side of the user.

    Trainers and evaluation may read three entries of `task.data`: `kind` ("conflict", "aligned", ...), and the two
    prompts `system` and `user`.
    """

    def reward(self, task: Task, trajectory: Trajectory) -> Mapping[str, float | None]:
        """Return {"user": r_user, "sys": r_sys}, each in [0, 1]. None asks the judge, where no program can grade.

        A side that is left out has no reward, and no judge is asked. This happens when the reply was cut before it
        reached an answer.
        """
        ...

    def expert_response(self, task: Task) -> str | None:
        """Return a reply that is worth imitating, or None if the bench has none."""
        ...

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return the reply as a trace without turns."""
        reply = self.expert_response(task)
        return None if reply is None else ExpertTrace(task.id, (), reply, "generated")


@runtime_checkable
class Referenced(Protocol):
    """A bench that knows which calls solve a task, whether or not there is a trace of them."""

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        """Return the ground truth, in order: {"name", "arguments"} of every call that a right solution makes.

        {"name", "result"} stands for a call of which only the result is known.
        """
        ...


@runtime_checkable
class TranscriptBench(Protocol):
    """A bench that can score transcripts made by another program (`agentrl score`)."""

    name: str

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Score one line of a transcripts file. Returns the official metrics, and a remark if they need one.

        `record` names its row of the bench's file by "row" (0-based, counted over the whole file) or "id". A metric is
        a number, a list with one entry per instruction, or None where the official code gives no verdict. A line that
        cannot be scored returns {} and what is wrong with it. Nothing of the record is executed. Raises UserError if
        the bench's own file is bad.
        """
        ...


@runtime_checkable
class Classified(Protocol):
    """A bench whose replies are classified by a model with a fixed prompt, which `judge` names."""

    name: str

    def request(self, task: Task, answer: str) -> JudgeRequest | None:
        """Return what to ask about a reply without its think block. None if no model has to be asked."""
        ...

    def classified(self, task: Task, answer: str, verdict: Verdict | None) -> Mapping[str, float | None]:
        """Return the metrics of a reply. None if no model was asked; without a verdict its metrics are None."""
        ...

    def read_transcript(self, record: dict[str, Any]) -> tuple[Task, str]:
        """Return the task and the answer of one line of a transcripts file. Raises BadTranscript."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """A bench that has something to say about the data that it read."""

    def remarks(self) -> list[str]:
        """Return lines for the user, e.g. which rows were left out for a mistake."""
        ...


def remarks_of(bench: Bench) -> list[str]:
    """Return what the bench has to say about its data, as warnings. Empty for most benches."""
    return [f"warning: bench={bench.name}: {text}" for text in bench.remarks()] if isinstance(bench, Remarking) else []


ExpertTraces = Callable[[Task], ExpertTrace | None]  # a bench's `expert_trace`, or a caller's function in its place
Finished = Callable[[Task, Environment], None]
Play = Callable[[list[Task], Finished], None]  # plays one episode of each task, and calls `finished` after each


@runtime_checkable
class Preparing(Protocol):
    """A bench whose tasks need the policy to play something else first."""

    def prepare(self, tasks: list[Task], play: Play, directory: Path) -> list[Task]:
        """Return the tasks ready to be asked. What was played stays in `directory` and is not played again.

        A task is left out if an endpoint failed to play what the task builds on.
        """
        ...


def reference_calls(bench: Bench, task: Task) -> list[dict[str, Any]]:
    """Return the calls that rewards compare with: the bench's ground truth, or else the calls of the bench's own trace.

    A trace that the user supplies (`traces=FILE`) is never used here.
    """
    if isinstance(bench, Referenced):
        return bench.reference_calls(task)
    trace = bench.expert_trace(task)
    return [] if trace is None else trace.calls


def has_own_reward(bench: Bench) -> bool:
    """Whether the bench defines its own reward, in place of the configured one."""
    return type(bench).reward is not Bench.reward
