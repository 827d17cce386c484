"""Benches of hierarchical instruction following (HIF): a system prompt, a user prompt, one reply, two rewards.

A suite defines how its rows are read and graded (`SingleTurn`). Trainers and evaluation see it as `TwoSided`.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agentrl.benches.rows import RowIndex
from agentrl.chat.transcripts import BadTranscript
from agentrl.core.bench import Environment, NoTools, Score, Task, TwoSided
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory

KINDS = ("conflict", "aligned", "reference", "mixed")  # values of task.data["kind"]; mixed if the file does not say
SPLITS = ("train", "test")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Pair:
    """One row: its 0-based place in the file, its prompts, and the `data` that the suite's checker needs."""

    row: int
    kind: str
    messages: tuple[dict[str, str], ...]
    data: dict[str, Any]
    suite: str = ""  # the part, if the suite has several files

    @property
    def system(self) -> str:
        return "\n".join(message["content"] for message in self.messages if message["role"] == "system")

    @property
    def user(self) -> str:
        """The last message of the user."""
        return self.messages[-1]["content"]

    @property
    def cluster(self) -> str:
        """The cluster of the row. Rows with the same system prompt are not independent."""
        return hashlib.sha256((self.system or self.user).encode()).hexdigest()[:16]


class SingleTurn(TwoSided, ABC):
    """The common part of the suites: splits, tasks, an environment without tools.

    Subclasses load rows and grade replies.
    """

    name: str
    solve_metric = "r_sys"

    def __init__(self, test_fraction: float, data_seed: int) -> None:
        self._fraction, self._seed = test_fraction, data_seed

    @abstractmethod
    def load(self) -> list[Pair]:
        """Read all rows in the order of the file. Raises UserError with the row and the reason."""

    @abstractmethod
    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        """Return both rewards of a reply as it was sampled, including its think block; see `TwoSided.reward`."""

    @abstractmethod
    def metrics(self, task: Task, response: str) -> dict[str, float]:
        """Return the metrics of one reply for evaluation."""

    @abstractmethod
    def transcript(self, task: Task, response: str) -> dict[str, Any]:
        """Return the suite's verdicts on the unchanged reply of a transcript. {} if no program grades the suite."""

    @cached_property
    def rows(self) -> list[Pair]:
        """All rows. They are read once."""
        return self.load()

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        rows = self.divide()[split]
        if not rows:
            one = len(self.rows) > 1 and len({row.cluster for row in self.rows}) == 1
            why = "all rows have one system prompt, so they are in one split; add rows with others" if one else ""
            why = why or "change bench.test_fraction"
            raise UserError(f"bench={self.name}: no row is left for the {split} split; {why}")
        if limit is not None and limit < len(rows):
            rows = random.Random(seed).sample(rows, limit)
        return [self.task(row) for row in rows]

    def size(self, split: str) -> int:
        return len(self.divide()[split])

    def divide(self) -> dict[str, list[Pair]]:
        """Divide rows into splits: `test_fraction` of each kind is held out, and no system prompt is in both splits."""
        strata: dict[str, dict[str, int]] = {}  # kind -> cluster -> rows
        kinds: dict[str, str] = {}  # a cluster with several kinds counts as the kind of its first row
        for row in self.rows:
            sizes = strata.setdefault(kinds.setdefault(row.cluster, f"{row.suite}/{row.kind}"), {})
            sizes[row.cluster] = sizes.get(row.cluster, 0) + 1
        held_out: set[str] = set()
        for kind, sizes in sorted(strata.items()):
            order = sorted(sizes)
            random.Random(f"{self.name}/{kind}/{self._seed}").shuffle(order)
            left = round(self._fraction * sum(sizes.values()))
            while left > 0 and order:
                held_out.add(order[-1])
                left -= sizes[order.pop()]
        return {split: [row for row in self.rows if (row.cluster in held_out) == (split == "test")] for split in SPLITS}

    def task(self, row: Pair) -> Task:
        """Make a task from a row. `data` holds kind, system, user and the fields of the suite."""
        suite = f"{row.suite}-" if row.suite else ""
        data = {"kind": row.kind, "system": row.system, "user": row.user, "suite": row.suite, **row.data}
        return Task(f"{self.name}-{suite}{row.row}", list(row.messages), [], "", row.cluster, data)

    def environment(self, task: Task) -> Environment:
        return NoTools()

    def reward(self, task: Task, trajectory: Trajectory) -> dict[str, float | None]:
        """Return `rewards` of the reply. Empty if the token budget ended the reply inside its think block."""
        return {} if is_cut_in_thought(trajectory) else self.rewards(task, response_of(trajectory))

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Return the suite's metrics. All are None if the token budget ended the reply inside its think block."""
        metrics: dict[str, float | None] = dict(self.metrics(task, response_of(trajectory)))
        if is_cut_in_thought(trajectory):
            metrics = dict.fromkeys(metrics)
        return Score(metrics, task.cluster, self.groups(task))

    def groups(self, task: Task) -> dict[str, str]:
        """Return the breakdowns that the task belongs to."""
        return {name: task.data[name] for name in ("kind", "suite") if task.data[name]}

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        try:
            task = self.task(self._index.find(record))
        except BadTranscript as error:
            return {}, str(error)
        response = record.get("response")
        if not isinstance(response, str):
            return {}, f"{task.id}: response is {type(response).__name__}, not text"
        verdicts = self.transcript(task, response)
        return verdicts, None if verdicts else f"no program grades bench={self.name}; its replies need a judge"

    @cached_property
    def _index(self) -> RowIndex[Pair]:
        by_number = {(row.suite, row.row): row for row in self.rows}
        return RowIndex(self.name, by_number, {self.task(row).id: row for row in self.rows})

    def expert_response(self, task: Task) -> str | None:
        return None


def response_of(trajectory: Trajectory) -> str:
    """Return the first assistant message as it was sampled. Parsed reasoning is put back into its tags."""
    message = next((message for message in trajectory.messages if message["role"] == "assistant"), {})
    content = message.get("content") or ""
    reasoning = message.get("reasoning_content")
    return f"{THINK_OPEN}{reasoning}{THINK_CLOSE}{content}" if reasoning else content


def is_cut_in_thought(trajectory: Trajectory) -> bool:
    """Whether the token budget ended the reply inside its think block, so that there is no answer to grade."""
    message = next((message for message in trajectory.messages if message["role"] == "assistant"), {})
    content = message.get("content") or ""
    unclosed = content.lstrip().startswith(THINK_OPEN) and THINK_CLOSE not in content
    return trajectory.truncated and (unclosed or (not content.strip() and bool(message.get("reasoning_content"))))


def answer_of(response: str) -> str:
    """Return the text after the think block, stripped. Empty if the block was never closed."""
    if THINK_CLOSE in response:
        return response.rsplit(THINK_CLOSE, 1)[1].strip()
    return "" if response.lstrip().startswith(THINK_OPEN) else response.strip()
