"""Suites that no program grades. They have tasks and splits, and leave r_sys and r_user to a judge.


pairs           any file of system and user prompts
systemcheck     HIPO's data: as many conflicting rows as aligned ones, drawn and divided by a seed
realguardrails  the evaluation rows of RealGuardrails; a banned word in the reply makes r_sys 0 without a judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrl.benches.hif.base import SPLITS, Pair, SingleTurn, answer_of
from agentrl.benches.hif.files import Row, find_files, rows_of
from agentrl.benches.rows import without_padding
from agentrl.config.benches import Pairs, RealGuardrails, SystemCheck
from agentrl.core.bench import Task
from agentrl.core.errors import UserError, first_line

JUDGED_KINDS = ("conflict", "aligned")
REALGUARDRAILS = {"handwritten": "mixed", "distractors": "aligned"}  # suite -> kind of its rows


class Judged(SingleTurn):
    """The common part of the suites. A program can only tell whether there is a reply."""

    def metrics(self, task: Task, response: str) -> dict[str, float]:
        return {"empty": float(not answer_of(response))}

    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        """Return both rewards. An empty reply earns 0 from both sides; a judge must grade any other reply."""
        earned = None if answer_of(response) else 0.0
        return {"user": earned, "sys": earned}

    def transcript(self, task: Task, response: str) -> dict[str, Any]:
        return {}


class PairsBench(Judged):
    """Rows {"system", "user", "kind": "conflict" or "aligned"} or {"messages", "kind"}; without kind a row is mixed."""

    name = "pairs"

    def __init__(self, config: Pairs) -> None:
        super().__init__(config.test_fraction, config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        return number_pairs(
            pair for row in rows_of(Path(self.config.path).expanduser()) for pair in pairs_of(row, "mixed")
        )


class SystemCheckBench(Judged):
    """Rows as in `pairs` with a kind (or `is_conflicting`), or system prompts with `user_messages` of both kinds."""

    name = "systemcheck"

    def __init__(self, config: SystemCheck) -> None:
        super().__init__(config.test_tasks / (config.train_tasks + config.test_tasks), config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        if self.config.path is not None:
            rows: Iterable[Row] = rows_of(Path(self.config.path).expanduser())
        else:
            rows = hub_rows(self.config.hub_id)
        pairs = number_pairs(pair for row in rows for pair in pairs_of(row, None))
        for kind in JUDGED_KINDS:
            if all(pair.kind != kind for pair in pairs):
                raise UserError(f"bench=systemcheck: there is no {kind} row; give a file with both kinds")
        return pairs

    def size(self, split: str) -> int:
        """Count the rows of the split. Without a local file, return the requested number, which needs no download."""
        if self.config.path is None:
            return self.config.train_tasks if split == "train" else self.config.test_tasks
        return super().size(split)

    def divide(self) -> dict[str, list[Pair]]:
        """Divide rows into splits. Each split has both kinds equally often, and no system prompt is in both splits.

        If there are too few rows for both splits, the test split is filled first.
        """
        by_prompt: dict[str, list[Pair]] = {}
        for pair in self.rows:
            by_prompt.setdefault(pair.cluster, []).append(pair)
        order = sorted(by_prompt)
        random.Random(f"systemcheck/{self.config.data_seed}").shuffle(order)
        available = min(sum(pair.kind == kind for pair in self.rows) for kind in JUDGED_KINDS)
        share = min(1.0, 2 * available / (self.config.train_tasks + self.config.test_tasks))
        wanted = {"test": self.config.test_tasks, "train": self.config.train_tasks}
        parts: dict[str, list[Pair]] = {}
        for split, total in wanted.items():
            taken: dict[str, list[Pair]] = {kind: [] for kind in JUDGED_KINDS}
            quota = max(1, round(share * total / 2)) if total else 0
            while order and min(map(len, taken.values())) < quota:
                for pair in by_prompt[order.pop()]:
                    if len(taken[pair.kind]) < quota:
                        taken[pair.kind].append(pair)
            size = min(map(len, taken.values()))
            parts[split] = [pair for kind in JUDGED_KINDS for pair in taken[kind][:size]]
        return {split: parts[split] for split in SPLITS}


class RealGuardrailsBench(Judged):
    """Rows of handwritten.jsonl and distractors.jsonl, or of one of these files."""

    name = "realguardrails"

    def __init__(self, config: RealGuardrails) -> None:
        super().__init__(config.test_fraction, config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        files = find_files(self.config.path, tuple(REALGUARDRAILS))
        return [read_guarded_pair(row, name or file.stem) for name, file in files.items() for row in rows_of(file)]

    def metrics(self, task: Task, response: str) -> dict[str, float]:
        """Return the metrics. Only rows that ban words have `banned_word`."""
        used = {"banned_word": float(uses_banned_word(task, answer_of(response)))} if task.data["banlist"] else {}
        return {**super().metrics(task, response), **used}

    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        rewards = super().rewards(task, response)
        return {**rewards, "sys": 0.0} if uses_banned_word(task, answer_of(response)) else rewards


def uses_banned_word(task: Task, answer: str) -> bool:
    """Whether the reply uses a word that the row bans, in upper or lower case."""
    return any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in task.data["banlist"])


# -- rows ------------------------------------------------------------------------------------------------------------


def number_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Number the pairs from 0, because one row of a file may have several."""
    return [replace(pair, row=index) for index, pair in enumerate(pairs)]


def read_guarded_pair(row: Row, suite: str) -> Pair:
    if suite not in REALGUARDRAILS:
        raise UserError(f"bench.path: {row.file} is neither handwritten.jsonl nor distractors.jsonl; rename it")
    lists = {name: row.content.get(name) or [] for name in ("guardrails", "banlist")}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            row.refuse(name, "expected a list of texts")
    return Pair(row.number, REALGUARDRAILS[suite], row.messages(), lists, suite)


def pairs_of(row: Row, default: str | None) -> Iterator[Pair]:
    """Yield the pairs of one row: one, or one for each of its `user_messages`. `default` is the kind if unlabelled."""
    if row.content.get("user_messages") is not None:  # as SystemCheck's pipeline writes them
        system = {"role": "system", "content": row.text("instructions")}
        for said in row.get("user_messages", list, "a list of messages"):
            if not isinstance(said, dict) or not isinstance(said.get("content"), str):
                row.refuse("user_messages", "expected objects with content and is_conflicting")
            kind = kind_of(row, said, default)
            yield Pair(row.number, kind, (system, {"role": "user", "content": said["content"]}), {})
        return
    if row.content.get("messages") is not None:
        messages = row.messages()
        if messages[0]["role"] != "system":
            row.refuse("messages", "the first message is not the system's")
    else:
        messages = tuple({"role": role, "content": row.text(role)} for role in ("system", "user"))
    yield Pair(row.number, kind_of(row, row.content, default), messages, {})


def kind_of(row: Row, content: dict[str, Any], default: str | None) -> str:
    if isinstance(content.get("is_conflicting"), bool):
        return "conflict" if content["is_conflicting"] else "aligned"
    kind = content.get("kind", default)
    if kind not in (*JUDGED_KINDS, default) or kind is None:
        row.refuse("kind", f"expected conflict or aligned, got {kind!r}")
    return str(kind)


def hub_rows(hub_id: str) -> Iterator[Row]:
    """Yield the rows of all splits of a dataset on the hub."""
    from datasets import load_dataset

    try:
        splits = load_dataset(hub_id)
    except Exception as error:  # the hub, the network, the cache and the file formats raise many kinds of errors
        raise UserError(
            f"bench.hub_id: cannot load dataset {hub_id} ({first_line(error)}); give the file as bench.path"
        ) from error
    for name, rows in splits.items():
        for number, content in enumerate(rows):
            yield Row(Path(f"{hub_id}[{name}]"), number, without_padding(content))
