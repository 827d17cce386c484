"""What side evaluations have in common: one question, one reply, a test split alone."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from agentrl.benches.hif.base import answer_of, is_cut_in_thought, response_of
from agentrl.benches.rows import RowIndex
from agentrl.benches.side.files import Collected
from agentrl.chat.transcripts import BadTranscript
from agentrl.config.side_benches import SideKeys
from agentrl.core.bench import Bench, Environment, NoTools, Score, Task
from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8
from agentrl.core.trajectory import Trajectory


@dataclass(frozen=True)
class Item:
    """One question: its place in the data, its text, its reference answer, and what its scorer needs."""

    row: int  # counted from 0, over the rows of its file
    prompt: str
    answer: str = ""
    suite: str = ""  # the part of the data, if it has several
    cluster: str = ""  # items that are not independent share it; empty if the item stands alone
    groups: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


class SideBench(Bench, ABC):
    """A bench that only evaluates. Subclasses load items and score replies."""

    name: str
    published: int  # items of the published data, for estimates without a local copy

    def __init__(self, config: SideKeys) -> None:
        self.config: Any = config

    @abstractmethod
    def load(self) -> Collected:
        """Read all items in the order of the data. Raises UserError if the data as a whole cannot be read."""

    @abstractmethod
    def metrics(self, task: Task, answer: str) -> dict[str, float | None]:
        """Score a reply without its think block."""

    @cached_property
    def _collected(self) -> Collected:
        collected = self.load()
        if not collected.made:
            why = collected.mistakes[0] if collected.mistakes else "the data has no row of this evaluation"
            raise UserError(f"bench={self.name}: no item is left: {why}")
        return collected

    @property
    def items(self) -> list[Item]:
        return self._collected.made

    def remarks(self) -> list[str]:
        """See `Remarking`."""
        return self._collected.remarks()

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        if split != "test":
            raise UserError(f"bench={self.name} has no {split} split; evaluate it with agentrl eval")
        items = self.items
        if limit is not None and limit < len(items):
            items = random.Random(seed).sample(items, limit)
        return [self.task(item) for item in items]

    def size(self, split: str) -> int:
        """Count the items. Without a local copy, return the published number, which needs no download."""
        if split != "test":
            return 0
        return self.published if self.config.path is None else len(self.items)

    @cached_property
    def _system(self) -> list[dict[str, str]]:
        if self.config.system_prompt is None:
            return []
        text = Path(self.config.system_prompt).expanduser().read_text(encoding=UTF_8).strip()
        return [{"role": "system", "content": text}]

    def task(self, item: Item) -> Task:
        suite = f"{item.suite}-" if item.suite else ""
        name = f"{self.name}-{suite}{item.row}"
        messages = [*self._system, {"role": "user", "content": item.prompt}]
        data = {"groups": {"suite": item.suite, **item.groups} if item.suite else dict(item.groups), **item.data}
        return Task(name, messages, [], item.answer, item.cluster or name, data)

    def environment(self, task: Task) -> Environment:
        return NoTools()

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Return the metrics. All are None if the token budget ended the reply inside its think block."""
        metrics = self.metrics(task, answer_of(response_of(trajectory)))
        if is_cut_in_thought(trajectory):
            metrics = dict.fromkeys(metrics)
        return Score(metrics, task.cluster, task.data["groups"])

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Score {"row" or "id", "response"}. The text is judged without its think block."""
        try:
            item = self._index.find(record)
        except BadTranscript as error:
            return {}, str(error)
        task, response = self.task(item), record.get("response")
        if not isinstance(response, str):
            return {}, f"{task.id}: response is {type(response).__name__}, not text"
        return dict(self.metrics(task, answer_of(response))), None

    @cached_property
    def _index(self) -> RowIndex[Item]:
        by_number = {(item.suite, item.row): item for item in self.items}
        return RowIndex(self.name, by_number, {self.task(item).id: item for item in self.items})
