"""What side evaluations have in common: one question, one reply, a test split alone."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from agentrl.benches.hif.base import answer_of, is_cut_in_thought, response_of
from agentrl.benches.rows import RowIndex
from agentrl.benches.side.files import Collected
from agentrl.chat.transcripts import BadTranscript, messages_of
from agentrl.config.side_benches import SideKeys, read_system_prompt
from agentrl.core.bench import Bench, Environment, NoTools, Score, Task
from agentrl.core.errors import UserError
from agentrl.core.judge import Verdict
from agentrl.core.trajectory import Trajectory
from agentrl.judges.classifiers import Classifier, ClassifierRequest, Labels, load_classifier


@dataclass(frozen=True)
class Item:
    """One question: its place in the data, its text, its reference answer, and what its scorer needs."""

    row: int  # counted from 0, over the rows of its file
    prompt: str
    name: str = ""  # in the ids of tasks; empty takes suite and row
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
        kept: dict[str, Item] = {}
        for item in collected.made:  # an id belongs to one row: results and transcripts name it
            if (name := self.task(item).id) in kept:
                collected.mistakes.append(f"row {item.row} (counted from 0) repeats the id {name}")
            kept.setdefault(name, item)
        collected.made = list(kept.values())
        if not collected.made:
            where = "the data" if self.config.path is None else f"bench.path={self.config.path}"
            why = collected.mistakes[0] if collected.mistakes else f"{where} has no row of this evaluation"
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
        return [{"role": "system", "content": read_system_prompt(self.config.system_prompt)}]

    def task(self, item: Item) -> Task:
        suite = f"{item.suite}-" if item.suite else ""
        name = f"{self.name}-{item.name or f'{suite}{item.row}'}"
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
            return dict(self.metrics(*self.read_transcript(record))), None
        except BadTranscript as error:
            return {}, str(error)

    def read_transcript(self, record: dict[str, Any]) -> tuple[Task, str]:
        """Return the task that `record` names and its answer: `response`, or the last of `messages`."""
        task, response = self.task(self._index.find(record)), record.get("response")
        if "missing" in record:  # a line of eval/ whose item a server did not play
            raise BadTranscript(f"{task.id} was not played ({record['missing']}); evaluate again, or remove the line")
        if response is None and record.get("messages"):
            response = messages_of(record)[-1].get("content")
        if not isinstance(response, str):
            raise BadTranscript(f"{task.id}: response is {type(response).__name__}, not text")
        return task, answer_of(response)

    @cached_property
    def _index(self) -> RowIndex[Item]:
        by_number = {(item.suite, item.row): item for item in self.items}
        return RowIndex(self.name, by_number, {self.task(item).id: item for item in self.items})


class ClassifiedBench(SideBench):
    """A bench whose replies a classifier grades. Subclasses say what the classifier is asked, and what follows."""

    @abstractmethod
    def ask(self, task: Task, answer: str) -> ClassifierRequest:
        """Return the request about a reply."""

    @abstractmethod
    def judged(self, task: Task, labels: Labels | None) -> dict[str, float | None]:
        """Return the metrics by the labels of a reply. All are None if the classifier gave no verdict."""

    @cached_property
    def classifier(self) -> Classifier:
        return load_classifier(self.config.classified_by())

    def metrics(self, task: Task, answer: str) -> dict[str, float | None]:
        """Return what a program can say; see `classified`."""
        return {"empty": float(not answer)}

    def request(self, task: Task, answer: str) -> ClassifierRequest | None:
        """See `Classified.request`."""
        return self.ask(task, answer) if self.config.classified_by() is not None else None

    def classified(self, task: Task, answer: str, verdict: Verdict | None) -> dict[str, float | None]:
        """See `Classified.classified`."""
        if verdict is None:
            return self.metrics(task, answer)
        labels = None if verdict.score is None else self.classifier.labels(verdict.note)
        return {**self.metrics(task, answer), **self.judged(task, labels)}
