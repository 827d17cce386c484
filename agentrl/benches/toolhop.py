"""ToolHop (arXiv 2501.02506): multi-hop questions with one Python tool per hop, asked and scored officially.

ToolHop is an evaluation set. We divide it by `test_fraction`, so that it can also be trained on. Results on our test
split are not comparable with published results, which use all rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.benches.execution import ERROR_PREFIX, WORKERS, ToolEnvironment, json_text, name_error
from agentrl.benches.toolhop_rows import Row, divide, find_file, load_rows
from agentrl.chat.transcripts import (
    BadTranscript,
    calls_without_output,
    find_row,
    messages_of,
    parse_text,
    parse_toolhop,
)
from agentrl.config.benches import ToolHop
from agentrl.core.bench import Bench, Environment, Score, Task
from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.trajectory import Trajectory
from agentrl.mining.mine import MinedTrace, Miner, Question, Rejection, verified_calls
from agentrl.mining.search import Hop
from agentrl.rewards.verdicts import (
    answer_verify,
    ftrl_correct,
    judge_corrected,
    solve_scores,
    strict_correct,
    toolhop_correct,
)
from agentrl.sandbox import Sandbox
from agentrl.schemas.plain import make_renderable

_DIRECT = """You will be asked a question, and should provide a short answer.
If the answer is a date, format is as follows: YYYY-MM-DD (ISO standard)
If the answer is a name, format it as follows: Firstname Lastname
If the answer contains any number, format it as a number, not a word, and only output that number. Do not include \
leading 0s.

Please provide the answer in the following format: <answer>your answer here</answer>
Answer as short as possible.
Question: """
# "nswer" is upstream's spelling
_MANDATORY = """You will be asked a question with some tools, and should provide a short final answer.
Please note that you must call the tool at every step, you must not use your own knowledge. Your final answer must \
also be returned from the tool.
If the final answer is a date, format is as follows: YYYY-MM-DD (ISO standard)
If the final nswer is a name, format it as follows: Firstname Lastname
If the final answer contains any number, format it as a number, not a word, and only output that number. Do not \
include leading 0s.

Please provide the final answer in the following format: <answer>final answer here</answer>
Answer as short as possible.
Question: """
_FREE = "".join(line for line in _MANDATORY.splitlines(keepends=True) if not line.startswith("Please note"))
PROMPTS = {"direct": _DIRECT, "mandatory": _MANDATORY, "free": _FREE}
RULES = {"toolhop": toolhop_correct, "ftrl": ftrl_correct, "strict": strict_correct}
READERS = {"toolhop": parse_toolhop, "ftrl": parse_text, "strict": parse_text}  # rule -> reader of its loop

PUBLISHED = 995  # number of rows in the published ToolHop.json


class ToolHopBench(Bench):
    """The bench; see the module docstring."""

    name = "toolhop"
    solve_metric = "answer_correct"

    def __init__(self, config: ToolHop, strict: bool = False) -> None:
        self.config = config
        self._sandbox = Sandbox(WORKERS, strict=strict)
        self._rows: list[Row] | None = None
        self.miner = Miner(strict)
        self._mined: dict[str, MinedTrace | Rejection] = {}

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        rows = self._split(split)
        if limit is not None and limit < len(rows):
            rows = random.Random(seed).sample(rows, limit)
        return [self._task(row) for row in rows]

    def size(self, split: str) -> int:
        """Return the number of rows in the split. Without a local file it is that of the published file."""
        if self.config.path is not None:
            return len(self._split(split))
        test = round(self.config.test_fraction * PUBLISHED)
        return test if split == "test" else PUBLISHED - test

    def _split(self, split: str) -> list[Row]:
        return divide(self._all_rows(), self.config.test_fraction, self.config.data_seed)[split]

    def _all_rows(self) -> list[Row]:
        if self._rows is None:
            self._rows = load_rows(find_file(self.config))
        return self._rows

    def _task(self, row: Row) -> Task:
        schemas = [make_renderable({"type": "function", "function": tool}) for tool in row.tools]
        return Task(
            id=f"toolhop-{row.id}",
            prompt=[{"role": "user", "content": PROMPTS[self.config.scenario] + row.question}],
            tools=[] if self.config.scenario == "direct" else schemas,
            answer=row.answer,
            cluster=f"{len(row.tools)} hops",
            data={"row": row},
            golds=row.golds,
        )

    def environment(self, task: Task) -> Environment:
        sources = task.data["row"].sources if task.tools else {}
        return ToolEnvironment(sources, json_text, self._sandbox, name_error, READERS[self.config.rule])

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Return `answer_correct` by the configured rule, absent if the official code sets no field.

        Solve-P/R/F1 compare the tool outputs with the sub-answers by FTRL's rule. Failed calls are counted for every
        bench: see `evaluate.item_values`.
        """
        row: Row = task.data["row"]
        correct = self._verdict(trajectory.messages, row.answer)
        metrics = {} if correct is None else {"answer_correct": correct}
        if task.tools:
            corrected = self.config.rules == "corrected"
            made = [*trajectory.calls, *calls_without_output(trajectory.unexecuted)]
            precision, recall, f1 = solve_scores(made, row.golds, corrected=corrected)
            metrics |= {"solve_p": precision, "solve_r": recall, "solve_f1": f1}
        return Score(metrics, task.cluster, {"hops": str(len(row.tools)), "answer_type": row.answer_type or "unknown"})

    def _verdict(self, messages: Sequence[Mapping[str, Any]], answer: str) -> float | None:
        corrected = self.config.rules == "corrected" and self.config.rule != "strict"
        return judge_corrected(messages, answer) if corrected else RULES[self.config.rule](messages, answer)

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the official verdict on an episode {"row" or "id", "messages"}, or {} and what is wrong with it.

        `answer_correct` is 1 or 0, or None if ToolHop's code sets no field. `calls` and `error_calls` count outputs.
        """
        rows = self._all_rows()
        ids = {name: i for i, row in enumerate(rows) for name in (row.id, f"toolhop-{row.id}")}
        try:
            row, messages = rows[find_row(record, len(rows), ids)], messages_of(record)
        except BadTranscript as error:
            return {}, str(error)
        if self.config.scenario != "direct":  # without tools a text is judged unchanged
            messages = parse_assistant_texts(messages, self.config.rule)
        correct = self._verdict(messages, row.answer)
        outputs = [message.get("content") or "" for message in messages if message["role"] == "tool"]
        failed = sum(output.startswith(ERROR_PREFIX) for output in outputs)
        reason = (
            None if correct is not None else "no final text: ToolHop's code gives no verdict and counts it as wrong"
        )
        verdict = None if correct is None else int(correct)
        return {"answer_correct": verdict, "calls": len(outputs), "error_calls": failed}, reason

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return the mined trace if the final answer after it scores under the configured rule, else None."""
        outcome = self.mine(task) if task.tools else None
        return outcome.trace if isinstance(outcome, MinedTrace) else None

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        """Return a call for each hop, in order, even if no trace was kept. Empty if the prompt has no tools."""
        return verified_calls(self.mine(task)) if task.tools else []

    def mine(self, task: Task) -> MinedTrace | Rejection:
        """Mine a trace of the task, or return why there is none. `miner.coverage` counts both."""
        if task.id not in self._mined:
            row: Row = task.data["row"]
            hops = [Hop(*fields) for fields in zip(row.sub_questions, row.sub_answers, row.tools, strict=True)]
            question = Question(task.id, row.question, row.answer, hops, row.sources)
            self._mined[task.id] = self.miner.mine(question, self.environment(task), self._earns_full_marks)
        return self._mined[task.id]

    def _earns_full_marks(self, trace: ExpertTrace) -> bool:
        """Whether the last result of the trace states the answer, and the answer after it scores."""
        last = trace.turns[-1].observations[-1]
        messages = [{"role": "tool", "content": last}]
        messages.append({"role": "assistant", "content": f"<answer>{trace.answer}</answer>"})
        return answer_verify(last, trace.answer) and self._verdict(messages, trace.answer) == 1


def parse_assistant_texts(messages: list[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """Parse the assistant's raw texts as the official loop of `rule` does.

    Texts with `parsed_content` or `tool_calls` are parsed already. A list with a user message is what the official code
    stores, so all its texts are parsed already.
    """
    if any(message["role"] == "user" for message in messages):
        return messages
    parsed = []
    for message in messages:
        content = message.get("content")
        if "parsed_content" in message:
            content = message["parsed_content"]
        elif message["role"] == "assistant" and not message.get("tool_calls"):
            content = READERS[rule](content or "")[0]
        parsed.append({**message, "content": content})
    return parsed
