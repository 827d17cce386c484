"""FTRL (arXiv 2508.08791): questions with Python tools and a gold result for each sub-question, scored officially.

The bench reads FTRL's jsonl files, or MatchTIR's parquet files with the same columns. The turn limit is
`rollout.max_turns`: 20 in the official evaluation, 10 in MatchTIR and PACT. The score depends only on what the tools
returned, never on the final text.
"""

from __future__ import annotations

import random
from typing import Any

from agentrl.benches.execution import WORKERS, ToolEnvironment, plain_text
from agentrl.benches.ftrl_rows import QUESTION, Row, load_parts, load_rows, refuse_contamination, require_file
from agentrl.chat.transcripts import BadTranscript, calls_without_output, find_row, messages_of, pair_calls_with_outputs
from agentrl.config.benches import Ftrl
from agentrl.core.bench import Bench, Environment, Score, Task
from agentrl.core.expert_trace import ExpertTrace, TraceTurn
from agentrl.core.trajectory import Trajectory
from agentrl.mining.grounding import Knowledge
from agentrl.mining.mine import MinedTrace, Miner, Question, Rejection, verified_calls
from agentrl.mining.search import Hop
from agentrl.mining.templates import write_reasoning
from agentrl.rewards.verdicts import solve_scores
from agentrl.sandbox import Sandbox
from agentrl.schemas.plain import make_renderable

ANSWER_TAG = (
    " Only output the final answer (in words, numbers or phrase) inside the <answer></answer> tag, without any "
    "explanations or extra information."
)  # stands before QUESTION in the training prompt of MatchTIR and PACT


class FtrlBench(Bench):
    """The bench; see the module docstring."""

    name = "ftrl"
    solve_metric = "solve_f1"

    def __init__(self, config: Ftrl, strict: bool = False) -> None:
        self.config = config
        self._corrected = config.rules == "corrected"
        self._sandbox = Sandbox(WORKERS, strict=strict)
        self._parts: dict[str, list[Row]] | None = None
        self._file: list[Row] | None = None  # every row, for transcripts
        self.miner = Miner(strict)
        self._mined: dict[str, MinedTrace | Rejection] = {}
        self._references: dict[str, ExpertTrace | None] = {}

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        rows = self._split(split)
        if limit is not None and limit < len(rows):
            rows = random.Random(seed).sample(rows, limit)
        tagged = self.config.answer_tag == "always" or (self.config.answer_tag == "train" and split == "train")
        return [
            Task(
                id=row.id,
                prompt=prompt(row.messages, tagged),
                tools=[make_renderable(tool) for tool in row.tools],
                answer=row.answer,
                cluster=row.data_source,
                data={"row": row},
                golds=row.golds,
            )
            for row in rows
        ]

    def _split(self, split: str) -> list[Row]:
        if self._parts is None:
            self._parts = load_parts(self.config)
        if split == "train" and not self.config.train_on_test:
            refuse_contamination(self._parts, self.config.path)
        return self._parts[split]

    def size(self, split: str) -> int:
        return len(self._split(split))

    def environment(self, task: Task) -> Environment:
        return ToolEnvironment(task.data["row"].sources, plain_text, self._sandbox)

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Return Solve-P, Solve-R and Solve-F1, whose means over rows are the official results."""
        made = [*trajectory.calls, *calls_without_output(trajectory.unexecuted)]
        precision, recall, f1 = solve_scores(made, task.data["row"].golds, corrected=self._corrected)
        return Score({"solve_p": precision, "solve_r": recall, "solve_f1": f1}, task.cluster, {"source": task.cluster})

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the official metrics of an episode {"row" or "id", "messages"}, or {} and what is wrong with it."""
        if self._file is None:
            self._file = load_rows(require_file(self.config.path))
        try:
            row = self._file[find_row(record, len(self._file), {row.id: i for i, row in enumerate(self._file)})]
            calls, unexecuted = pair_calls_with_outputs(messages_of(record))
        except BadTranscript as error:
            return {}, str(error)
        precision, recall, f1 = solve_scores(
            [*calls, *calls_without_output(unexecuted)], row.golds, corrected=self._corrected
        )
        reason = f"{unexecuted} calls of the last turn have no output and count as unsolved" if unexecuted else None
        return {"solve_p": precision, "solve_r": recall, "solve_f1": f1}, reason

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return a trace of the row's reference calls if they earn full marks when executed, else a mined trace."""
        if task.id not in self._references:
            self._references[task.id] = self._reference(task.data["row"], self.environment(task))
        if self._references[task.id] is not None:
            return self._references[task.id]
        outcome = self.mine(task)
        return outcome.trace if isinstance(outcome, MinedTrace) else None

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        """Return MatchTIR's ground truth if the row has it, else a mined call for each sub-answer."""
        row: Row = task.data["row"]
        if row.ground_truth:
            return [{"name": name, "arguments": arguments} for name, arguments in row.ground_truth]
        return verified_calls(self.mine(task))

    def mine(self, task: Task) -> MinedTrace | Rejection:
        """Mine a trace of the task, or return why there is none. `miner.coverage` counts both."""
        if task.id not in self._mined:
            row: Row = task.data["row"]
            hops = [Hop(row.question, gold, row.functions[name]) for name, golds in row.golds.items() for gold in golds]
            question = Question(row.id, row.question, row.answer, hops, row.sources, ordered=False)
            self._mined[task.id] = self.miner.mine(question, self.environment(task), lambda t: earns_full_marks(t, row))
        return self._mined[task.id]

    def _reference(self, row: Row, environment: Environment) -> ExpertTrace | None:
        turns: list[TraceTurn] = []
        known = Knowledge()
        known.add("question", row.question)
        for name, arguments in row.ground_truth:
            call = environment.call(name, arguments, turn=len(turns))
            if call.error:
                return None
            thought = write_reasoning(row.question, row.functions[name], arguments, known)
            turns.append(TraceTurn(thought, ({"name": name, "arguments": arguments},), (call.observation,)))
            known.add(f"step {len(turns)}", call.observation)
        trace = ExpertTrace(row.id, tuple(turns), row.answer, source="path")
        return trace if earns_full_marks(trace, row) else None


def earns_full_marks(trace: ExpertTrace, row: Row) -> bool:
    """Whether a rollout that makes the calls of the trace would score 1 in all three metrics."""
    return solve_scores(trace.executed_calls(), row.golds) == (1.0, 1.0, 1.0)


def prompt(messages: tuple[dict[str, str], ...], tagged: bool) -> list[dict[str, str]]:
    """Add or remove the sentence that asks for answer tags, whether or not the file has it."""
    text = messages[-1]["content"].replace(ANSWER_TAG, "", 1)
    text = text.replace(QUESTION, ANSWER_TAG + QUESTION, 1) if tagged else text
    return [*messages[:-1], {"role": "user", "content": text}]
