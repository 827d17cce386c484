"""FTRL (arXiv 2508.08791): questions with Python tools and a gold result per sub-question, as its official code scores.

Read from FTRL's jsonl files or MatchTIR's parquet files of the same columns. A row's turn limit is `rollout.max_turns`:
20 in the official evaluation, 10 in MatchTIR and PACT. The final text is never scored, only what the tools returned.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.benches.base import Environment, Score, Task
from agentrl.benches.execution import ToolEnvironment, plain_text
from agentrl.benches.rows import limit_row
from agentrl.benches.transcripts import BadTranscript, executed_calls, find_row, messages_of
from agentrl.config.benches import Ftrl
from agentrl.errors import UserError
from agentrl.jsonl import flaw
from agentrl.rewards.verdicts import solve_scores
from agentrl.sandbox import Sandbox
from agentrl.traces.grounding import Knowledge
from agentrl.traces.mining import MinedTrace, Miner, Question, Rejection
from agentrl.traces.records import ExpertTrace, TraceTurn
from agentrl.traces.search import Hop
from agentrl.traces.templates import reasoning
from agentrl.trajectory import ToolCall, Trajectory

SUFFIXES = (".jsonl", ".parquet")
SPLITS = ("train", "test")
QUESTION = "\nQuestion: "
ANSWER_TAG = (
    " Only output the final answer (in words, numbers or phrase) inside the <answer></answer> tag, without any "
    "explanations or extra information."
)  # goes before QUESTION in the training prompt of MatchTIR and PACT


@dataclass(frozen=True)
class Row:
    """One question. `golds` maps tool names to the results that their calls should give, in the file's order."""

    id: str
    messages: tuple[dict[str, str], ...]
    question: str
    answer: str
    tools: tuple[dict[str, Any], ...]
    sources: dict[str, str]
    golds: dict[str, list[str]]
    data_source: str
    split: str
    ground_truth: tuple[tuple[str, dict[str, Any]], ...]  # MatchTIR's reference calls; empty in FTRL's own files

    @property
    def functions(self) -> dict[str, dict[str, Any]]:
        return {tool["function"]["name"]: tool["function"] for tool in self.tools}


class FtrlBench:
    """The bench; see the module docstring."""

    name = "ftrl"
    solve_metric = "solve_f1"

    def __init__(self, config: Ftrl, strict: bool = False) -> None:
        self.config = config
        self._mended = config.rules == "mended"
        self._sandbox = Sandbox(strict=strict)
        self._parts: dict[str, list[Row]] | None = None
        self._file: list[Row] | None = None  # every row, for transcripts
        self.miner = Miner(strict)
        self._mined: dict[str, MinedTrace | Rejection] = {}
        self._references: dict[str, ExpertTrace | None] = {}

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        if self._parts is None:
            self._parts = load_parts(self.config)
        if split == "train" and not self.config.train_on_test:
            refuse_contamination(self._parts, self.config.path)
        rows = self._parts[split]
        if limit is not None and limit < len(rows):
            rows = random.Random(seed).sample(rows, limit)
        tagged = self.config.answer_tag == "always" or (self.config.answer_tag == "train" and split == "train")
        return [
            Task(
                id=row.id,
                prompt=prompt(row.messages, tagged),
                tools=list(row.tools),
                answer=row.answer,
                cluster=row.data_source,
                data={"row": row},
                golds=row.golds,
            )
            for row in rows
        ]

    def environment(self, task: Task) -> Environment:
        return ToolEnvironment(task.data["row"].sources, plain_text, self._sandbox)

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Solve-P, Solve-R and Solve-F1, whose means over rows are the official results."""
        precision, recall, f1 = solve_scores(trajectory.calls, task.data["row"].golds, mended=self._mended)
        return Score({"solve_p": precision, "solve_r": recall, "solve_f1": f1}, task.cluster, {"source": task.cluster})

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Official metrics of the episode {"row" or "id", "messages"}, or {} and what is wrong with it."""
        if self._file is None:
            self._file = load_rows(one_file(self.config.path))
        try:
            row = self._file[find_row(record, len(self._file), {row.id: i for i, row in enumerate(self._file)})]
            calls, unexecuted = executed_calls(messages_of(record))
        except BadTranscript as error:
            return {}, str(error)
        # A call without an output counts as made and solves nothing: no tool is called ''.
        made = calls + [ToolCall(0, "", None)] * unexecuted
        precision, recall, f1 = solve_scores(made, row.golds, mended=self._mended)
        reason = f"{unexecuted} calls of the last turn have no output; they count as unsolved" if unexecuted else None
        return {"solve_p": precision, "solve_r": recall, "solve_f1": f1}, reason

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """The row's own reference calls if they earn full marks when executed, else a mined trace that does."""
        if task.id not in self._references:
            self._references[task.id] = self._reference(task.data["row"], self.environment(task))
        if self._references[task.id] is not None:
            return self._references[task.id]
        outcome = self.mine(task)
        return outcome.trace if isinstance(outcome, MinedTrace) else None

    def mine(self, task: Task) -> MinedTrace | Rejection:
        """The mined trace with its steps, or why there is none; `miner.coverage` counts."""
        if task.id not in self._mined:
            row: Row = task.data["row"]
            hops = [Hop(row.question, gold, row.functions[name]) for name, golds in row.golds.items() for gold in golds]
            question = Question(row.id, row.question, row.answer, hops, row.sources, ordered=False)
            self._mined[task.id] = self.miner.mine(question, self.environment(task), lambda t: full_marks(t, row))
        return self._mined[task.id]

    def _reference(self, row: Row, environment: Environment) -> ExpertTrace | None:
        turns: list[TraceTurn] = []
        known = Knowledge()
        known.add("question", row.question)
        for name, arguments in row.ground_truth:
            call = environment.call(name, arguments, turn=len(turns))
            if call.error:
                return None
            thought = reasoning(row.question, row.functions[name], arguments, known)
            turns.append(TraceTurn(thought, ({"name": name, "arguments": arguments},), (call.observation,)))
            known.add(f"step {len(turns)}", call.observation)
        trace = ExpertTrace(row.id, tuple(turns), row.answer, source="path")
        return trace if full_marks(trace, row) else None


def full_marks(trace: ExpertTrace, row: Row) -> bool:
    """Would a rollout that makes the calls of the trace score 1 in all three?"""
    calls = [
        ToolCall(index, call["name"], call["arguments"], observation)
        for index, turn in enumerate(trace.turns)
        for call, observation in zip(turn.calls, turn.observations, strict=True)
    ]
    return solve_scores(calls, row.golds) == (1.0, 1.0, 1.0)


def prompt(messages: tuple[dict[str, str], ...], tagged: bool) -> list[dict[str, str]]:
    """The messages with or without the sentence that asks for answer tags, whichever the file has."""
    text = messages[-1]["content"].replace(ANSWER_TAG, "", 1)
    text = text.replace(QUESTION, ANSWER_TAG + QUESTION, 1) if tagged else text
    return [*messages[:-1], {"role": "user", "content": text}]


def divide(rows: list[Row], test_fraction: float, data_seed: int) -> dict[str, list[Row]]:
    """Rows of each split in file order: the same share of every data source, and no question in both."""
    sources: dict[str, list[str]] = {}
    for question, source in {row.question: row.data_source for row in rows}.items():
        sources.setdefault(source, []).append(question)
    test: set[str] = set()
    for source, questions in sorted(sources.items()):
        count = min(max(round(test_fraction * len(questions)), 1), max(len(questions) - 1, 1))
        test |= set(random.Random(f"ftrl/{source}/{data_seed}").sample(questions, count))
    return {split: [row for row in rows if (row.question in test) == (split == "test")] for split in SPLITS}


def refuse_contamination(parts: dict[str, list[Row]], path: str) -> None:
    """Raise UserError where a test row is among the training rows, or where there are no training rows."""
    way_out = "set bench.train_on_test=true to train on test rows all the same"
    if not parts["train"]:
        files = "give a directory with FTRL's train and test files"
        raise UserError(f"bench.path: {path} holds test rows alone; {files}, or {way_out}")
    held_out = {row.question for row in parts["test"]}
    for row in parts["train"]:
        if row.split == "test" or row.question in held_out:
            raise UserError(f"bench.path: {path}, training row {row.id} is a test row; remove it, or {way_out}")


# -- loading ---------------------------------------------------------------------------------------------------------


def load_parts(config: Ftrl) -> dict[str, list[Row]]:
    """Rows of each split. Rows of one split alone are divided, test rows only on the configuration's word."""
    files = split_files(Path(config.path))
    if len(files) == len(SPLITS):
        return {split: load_rows(file) for split, file in files.items()}
    rows = load_rows(files[""])
    parts = {split: [row for row in rows if (row.split == "test") == (split == "test")] for split in SPLITS}
    if all(parts.values()) or (not parts["train"] and not config.train_on_test):
        return parts
    return divide(rows, config.test_fraction, config.data_seed)


def one_file(path: str) -> Path:
    """The file whose rows transcripts count. Raises UserError for a directory."""
    if Path(path).is_dir():
        raise UserError(f"bench.path: {path} is a directory; name the file whose rows the transcripts count")
    return Path(path)


def split_files(path: Path) -> dict[str, Path]:
    """{"train": file, "test": file} of a directory, or {"": file} of one file."""
    if not path.is_dir():
        return {"": path}
    files: dict[str, Path] = {}
    for split in SPLITS:
        found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if len(found) != 1:
            names = " or ".join(f"{split}{suffix}" for suffix in SUFFIXES)
            raise UserError(
                f"bench.path: {path} holds {len(found)} files named {names}; it must hold one, or be a file"
            )
        files[split] = found[0]
    return files


def load_rows(path: Path) -> list[Row]:
    """All rows of a jsonl or parquet file; complaints name the file, the line (or parquet row) and the field."""
    rows = [row_of(entry, f"{path.stem}-{index}", where) for index, where, entry in _entries(path)]
    if not rows:
        raise UserError(f"bench.path: {path} holds no rows; expected FTRL's jsonl or MatchTIR's parquet")
    return rows


def _entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    """0-based index, place for complaints, and content of every row."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"bench.path: cannot read {path} ({error.strerror}); give FTRL's file or directory") from error
    if path.suffix == ".parquet":
        yield from _parquet_entries(path)
        return
    row = 0
    for index, line in enumerate(content.split(b"\n")):
        if not line.strip():
            continue
        where = f"bench.path: {path}, line {index + 1} (row {row})"
        limit_row(len(line), where)
        try:
            entry = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 (byte {error.start}); convert or download the file again") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no whole JSON ({flaw(error)}); download the file again") from error
        yield row, where, entry
        row += 1


def _parquet_entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        entries = pyarrow.parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"bench.path: {path} is no whole parquet file; download it again") from error
    for index, entry in enumerate(entries):
        where = f"bench.path: {path}, row {index}"
        limit_row(sum(len(value) for value in entry.values() if isinstance(value, str)), where)
        yield index, where, entry


def row_of(entry: Any, name: str, where: str) -> Row:
    """One row, checked."""

    def need(condition: bool, field: str, reason: str) -> None:
        if not condition:
            raise UserError(f"{where}, {field}: {reason}; mend or remove the row")

    def decoded(field: str, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, {field}: bad JSON ({flaw(error)}); mend or remove the row") from error

    need(isinstance(entry, dict), "whole row", "expected an object")
    for field in ("messages", "tools", "codes", "unsolved_set", "answer"):
        need(field in entry, field, "missing")
    messages, tools, codes, golds = (decoded(f, entry[f]) for f in ("messages", "tools", "codes", "unsolved_set"))

    fit = isinstance(messages, list) and all(isinstance(m, dict) for m in messages) and len(messages) > 0
    fit = fit and all(isinstance(m.get(part), str) for m in messages for part in ("role", "content"))
    need(fit, "messages", "expected a list of messages with role and content")
    asked = messages[-1]["role"] == "user" and QUESTION in messages[-1]["content"]
    need(asked, "messages", f"the last is no user message with a line {QUESTION.strip()!r}")
    need(isinstance(entry["answer"], str), "answer", f"expected a string, got {type(entry['answer']).__name__}")

    fit = isinstance(codes, dict) and all(isinstance(source, str) for source in codes.values())
    need(fit, "codes", "expected an object of tool name and Python source")
    names: set[str] = set()
    need(isinstance(tools, list) and len(tools) > 0, "tools", "expected a non-empty list")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        function = function if isinstance(function, dict) else {}
        fit = isinstance(function.get("name"), str) and isinstance(function.get("parameters"), dict)
        need(fit, "tools", "expected functions with a name and parameters")
        need(function["name"] not in names, "tools", f"the name {function['name']} occurs twice")
        need(function["name"] in codes, "codes", f"no source for the tool {function['name']}")
        names.add(function["name"])

    fit = isinstance(golds, dict) and all(isinstance(answers, list) for answers in golds.values())
    need(fit, "unsolved_set", "expected an object of tool name and list of results")
    need(any(golds.values()), "unsolved_set", "holds no results")
    for tool_name, answers in golds.items():
        need(tool_name in names, "unsolved_set", f"there is no tool {tool_name}")
        need(all(isinstance(answer, str) for answer in answers), "unsolved_set", f"{tool_name}: expected strings")

    calls = decoded("ground_truth", entry.get("ground_truth")) or []
    need(isinstance(calls, list), "ground_truth", "expected a list of calls")
    for call in calls:
        fit = isinstance(call, dict) and call.get("name") in names and isinstance(call.get("parameters"), dict)
        need(fit, "ground_truth", "expected calls of the row's tools, with name and parameters")
    return Row(
        id=f"ftrl-{name}",
        messages=tuple({"role": m["role"], "content": m["content"]} for m in messages),
        question=messages[-1]["content"].split(QUESTION, 1)[1],
        answer=entry["answer"],
        tools=tuple(tools),
        sources=codes,
        golds=golds,
        data_source=str(entry.get("data_source") or "self"),
        split=str(entry.get("split")),
        ground_truth=tuple((call["name"], call["parameters"]) for call in calls),
    )
