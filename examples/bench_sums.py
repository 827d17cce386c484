"""Your own bench: sums of two numbers, and a tool that adds them."""

from __future__ import annotations

import random
from typing import Any

from agentrl.config.benches import CustomBench
from agentrl.core.bench import Bench, Score, Task
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rewards.answers import extract_answer

PARAMETERS = {"type": "object", "properties": {key: {"type": "integer"} for key in "ab"}, "required": ["a", "b"]}
ADD = {"type": "function", "function": {"name": "add", "description": "a + b", "parameters": PARAMETERS}}


class Calculator:
    """The tools of one episode. A mistake of the model gives an observation, never an exception."""

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        try:
            result, failed = str(int(arguments["a"]) + int(arguments["b"])), name != "add"
        except (KeyError, TypeError, ValueError):  # the model did not write two numbers
            result, failed = "", True
        return ToolCall(turn, name, arguments, "error: add takes two integers" if failed else result, error=failed)


class Sums(Bench):
    name = "sums"
    solve_metric = "correct"

    def __init__(self, largest: int = 99, tasks: int = 64) -> None:
        self.largest, self.count = largest, tasks

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        rng, tasks = random.Random(f"sums/{split}"), []
        while len(tasks) < self.count:
            a, b = rng.randint(1, self.largest), rng.randint(1, self.largest)
            if (a * b % 4 == 0) == (split == "test"):  # no question is in both splits
                text = f"What is {a} + {b}? Put the final answer inside <answer></answer>."
                prompt, data = [{"role": "user", "content": text}], {"a": a, "b": b}
                tasks.append(Task(f"{split}-{len(tasks)}", prompt, [ADD], str(a + b), cluster=f"{a}+{b}", data=data))
        return tasks if limit is None or limit >= len(tasks) else random.Random(seed).sample(tasks, limit)

    def environment(self, task: Task) -> Calculator:
        return Calculator()

    def expert_trace(self, task: Task) -> ExpertTrace:
        call = {"name": "add", "arguments": task.data}
        turn = TraceTurn((Chunk("tool_selection", "I add."),), (call,), (task.answer,))
        return ExpertTrace(task.id, (turn,), task.answer, source="generated")

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return Score({"correct": float(extract_answer(trajectory.final_text) == task.answer)}, task.cluster)


def load(config: CustomBench) -> Sums:
    return Sums(**config.options)
