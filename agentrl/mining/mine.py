"""Mine expert traces without a teacher: find, for every step, a call whose real output is the step's known answer.

A trace is kept if every step has a verified call, every argument is grounded (it comes from what the model has read),
and the bench's official score is full. Everything else is a `Rejection`, which names the step that failed and the
reason. An argument that comes from nowhere would teach the policy to guess.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from agentrl.core.bench import Environment, Task
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.mining.grounding import Knowledge
from agentrl.mining.search import Found, Hop, Search
from agentrl.mining.templates import write_reasoning
from agentrl.mining.values import leaves
from agentrl.sandbox import Sandbox

UNGROUNDED = "an argument is ungrounded"
UNVERIFIED = "no call gives the answer"
NOT_FULL = "the official score is not full"
OUTPUT_CHARS = 4_000_000  # characters of output of one batch of runs


@dataclass(frozen=True)
class Question:
    """What a trace is mined for. `sources` maps tool names to code; `ordered` says whether the hops are in order."""

    task_id: str
    text: str
    answer: str
    hops: list[Hop]
    sources: Mapping[str, str]
    ordered: bool = True


@dataclass(frozen=True)
class Step:
    """The outcome of one hop: its call (even if it is not grounded), and the reason if the call does not count.

    A `bridge` is a call whose output is not the step's answer in the data, but a value that a later step needs.
    """

    hop: Hop
    found: Found | None
    bridge: bool = False

    @property
    def problem(self) -> str | None:
        if self.found is None:
            return UNVERIFIED
        return None if self.found.grounded else UNGROUNDED

    @property
    def ungrounded(self) -> dict[str, Any]:
        """The arguments that come from nowhere."""
        if self.found is None:
            return {}
        return {name: self.found.arguments[name] for name, source in self.found.sources.items() if source is None}


@dataclass(frozen=True)
class MinedTrace:
    """A kept trace and its steps, in the order of the calls."""

    trace: ExpertTrace
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Rejection:
    """Why a question has no trace, and the outcome of each step."""

    task_id: str
    reason: str
    steps: tuple[Step, ...]


def verified_calls(outcome: MinedTrace | Rejection) -> list[dict[str, Any]]:
    """Return the verified call of every step, even if no trace was kept; the step's result if no call is known."""
    calls = []
    for step in outcome.steps:
        what = {"result": step.hop.answer} if step.found is None else {"arguments": step.found.arguments}
        calls.append({"name": step.hop.tool["name"], **what})
    return calls


@dataclass
class Coverage:
    """Counts over the rows of a bench."""

    rows: int = 0
    rows_kept: int = 0  # rows with a trace
    rows_verified: int = 0  # rows in which every step has a verified call, grounded or not
    steps: int = 0
    steps_grounded: int = 0  # steps with a verified and grounded call
    steps_ungrounded: int = 0  # steps with a verified call that was rejected because an argument is ungrounded
    steps_bridged: int = 0  # steps whose answer no call gives; a call that later steps need took its place
    reasons: Counter[str] = field(default_factory=Counter)  # how often each reason rejected a row

    def add(self, outcome: MinedTrace | Rejection) -> None:
        """Count one row."""
        self.rows += 1
        self.steps += len(outcome.steps)
        self.steps_grounded += sum(step.problem is None and not step.bridge for step in outcome.steps)
        self.steps_ungrounded += sum(step.problem == UNGROUNDED for step in outcome.steps)
        self.steps_bridged += sum(step.bridge for step in outcome.steps)
        self.rows_verified += all(step.found is not None for step in outcome.steps)
        if isinstance(outcome, MinedTrace):
            self.rows_kept += 1
        else:
            self.reasons[outcome.reason] += 1

    @property
    def steps_verified(self) -> int:
        """Number of steps with a call that gives the answer, grounded or not."""
        return self.steps_grounded + self.steps_ungrounded

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain values, for a report."""
        names = ("rows", "rows_kept", "rows_verified", "steps", "steps_grounded", "steps_ungrounded", "steps_bridged")
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return counts | {"steps_verified": self.steps_verified, "reasons": dict(self.reasons)}


class Miner:
    """Mines traces and counts them. Tools are explored in the miner's own sandbox and verified in the bench's."""

    def __init__(self, strict: bool = False) -> None:
        self._sandbox = Sandbox(output_chars=OUTPUT_CHARS, strict=strict)
        self.coverage = Coverage()

    def mine(
        self, question: Question, environment: Environment, full_marks: Callable[[ExpertTrace], bool]
    ) -> MinedTrace | Rejection:
        """Return the trace of `question`, or why there is none. `full_marks` is the bench's official verdict."""
        steps = (self._in_order if question.ordered else self._in_any_order)(question, environment)
        outcome = _judge(question, steps, full_marks)
        self.coverage.add(outcome)
        return outcome

    # -- hops whose order is known -----------------------------------------------------------------------------------

    def _in_order(self, question: Question, environment: Environment) -> list[Step]:
        steps: list[Step] = []
        for hop in question.hops:
            known = _knowledge(question, steps)
            found = self._find(hop, question, known, environment)
            if found is not None and self._bridge(steps, found, question, environment):
                found = self._find(hop, question, _knowledge(question, steps), environment)
            steps.append(Step(hop, found))
        return steps

    def _bridge(self, steps: list[Step], needed: Found, question: Question, environment: Environment) -> bool:
        """Replace an earlier step without a call by one that gives what `needed` lacks. Return whether that worked.

        Some rows of a bench name a wrong answer for such a step.
        """
        lacking = [
            leaf
            for name, source in needed.sources.items()
            if source is None
            for _, leaf in leaves(needed.arguments[name])
            if isinstance(leaf, str)
        ]
        for index, step in enumerate(steps):
            for value in lacking if step.found is None else ():
                hop = Hop(step.hop.need, value, step.hop.tool)
                known = _knowledge(question, steps[:index])
                found = Search(hop, question.sources[hop.tool["name"]], known, self._sandbox).find(environment)
                if found is not None and found.grounded:
                    steps[index] = Step(step.hop, found, bridge=True)
                    return True
        return False

    # -- hops in any order -------------------------------------------------------------------------------------------

    def _in_any_order(self, question: Question, environment: Environment) -> list[Step]:
        """Find each call as if the other results were known, then order the calls so that they really are known."""
        waiting: list[Step] = []
        for index, hop in enumerate(question.hops):
            known = _question_only(question)
            for other, each in enumerate(question.hops):
                if other != index:
                    known.add(f"answer {other + 1}", each.answer)
            waiting.append(Step(hop, self._find(hop, question, known, environment)))
        steps: list[Step] = []
        while waiting:
            known = _knowledge(question, steps)
            regrounded = [_reground(step, known) for step in waiting]
            hopeless = (i for i, step in enumerate(waiting) if step.problem is not None)
            ready = (i for i, step in enumerate(regrounded) if step.problem is None)
            steps.append(regrounded[chosen := next(itertools.chain(ready, hopeless), 0)])
            del waiting[chosen]
        return steps

    def _find(self, hop: Hop, question: Question, known: Knowledge, environment: Environment) -> Found | None:
        """Return a grounded call; if there is none, an ungrounded one; else None."""
        source = question.sources[hop.tool["name"]]
        found = Search(hop, source, known, self._sandbox).find(environment)
        return found or Search(hop, source, known, self._sandbox, grounded=False).find(environment)


def _judge(question: Question, steps: list[Step], full_marks: Callable[[ExpertTrace], bool]) -> MinedTrace | Rejection:
    problems = [step.problem for step in steps if step.problem is not None]
    if problems or not steps:
        return Rejection(question.task_id, problems[0] if problems else UNVERIFIED, tuple(steps))
    turns: list[TraceTurn] = []
    known = _question_only(question)
    for step in steps:
        assert step.found is not None
        call = {"name": step.hop.tool["name"], "arguments": step.found.arguments}
        thought = write_reasoning(step.hop.need, step.hop.tool, step.found.arguments, known)
        turns.append(TraceTurn(thought, (call,), (step.found.observation,)))
        known.add(f"step {len(turns)}", step.found.observation)
    trace = ExpertTrace(question.task_id, tuple(turns), question.answer, source="mined")
    if not full_marks(trace):
        return Rejection(question.task_id, NOT_FULL, tuple(steps))
    return MinedTrace(trace, tuple(steps))


def _reground(step: Step, known: Knowledge) -> Step:
    """Return the step with the sources of its arguments among what is really known."""
    if step.found is None:
        return step
    schemas = step.hop.tool["parameters"].get("properties") or {}
    sources = {name: known.source(value, schemas.get(name)) for name, value in step.found.arguments.items()}
    return Step(step.hop, Found(step.found.arguments, step.found.observation, sources))


def _question_only(question: Question) -> Knowledge:
    known = Knowledge()
    known.add("question", question.text)
    return known


def _knowledge(question: Question, steps: list[Step]) -> Knowledge:
    """Return what is known after some steps. If a result could not be obtained, the step's answer takes its place."""
    known = _question_only(question)
    for number, step in enumerate(steps, 1):
        known.add(f"step {number}", step.found.observation if step.found else step.hop.answer)
    return known


@runtime_checkable
class Mining(Protocol):
    """A bench whose expert traces are mined."""

    miner: Miner

    def mine(self, task: Task) -> MinedTrace | Rejection:
        """Return the mined trace with its steps, or the reason why there is none; `miner.coverage` counts both."""
        ...
