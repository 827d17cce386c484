"""A bench that trains on its own score: a reply should hold the words that the prompt asks for, and no others."""

from __future__ import annotations

import random

from agentrl.config.benches import CustomBench
from agentrl.core.bench import Bench, NoTools, Score, Task
from agentrl.core.trajectory import Trajectory

ANIMALS = ("ant", "bat", "cow", "dog", "elk", "fox", "hen", "owl")


class Words(Bench):
    name = "words"
    solve_metric = "named"

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        first = {"train": 0, "test": 1}[split]  # each pair is in one split only
        pairs = [f"{a} {b}" for i, a in enumerate(ANIMALS) for b in ANIMALS[i + 1 + first :: 2]]
        tasks = [Task(pair, [{"role": "user", "content": f"Say {pair}."}], [], pair, cluster=pair) for pair in pairs]
        return tasks if limit is None or limit >= len(tasks) else random.Random(seed).sample(tasks, limit)

    def environment(self, task: Task) -> NoTools:
        return NoTools()

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        said, asked = trajectory.final_text.lower().split(), set(task.answer.split())
        return Score({"named": len(asked & set(said)) / max(len(asked), len(said))}, task.cluster)

    def reward(self, task: Task, trajectory: Trajectory) -> float:
        return self.score(task, trajectory).metrics["named"] or 0.0


def load(config: CustomBench) -> Words:
    return Words()
