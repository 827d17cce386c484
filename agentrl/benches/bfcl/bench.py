"""BFCL v4 (gorilla.cs.berkeley.edu): multi-turn calls on simulated APIs, memory and web search, scored officially.


APIs, checkers and data come from the bfcl-eval package. docs/bfcl.md says what is official and what is ours. BFCL is an
evaluation set. We divide it by `test_fraction`, so that it can also be trained on; all variants of an item are in the
same split.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.benches.bfcl import memory, traces, verdicts
from agentrl.benches.bfcl.data import (
    MEMORY,
    MULTI_TURN,
    WEB_SEARCH,
    DataFiles,
    Entry,
    memory_config,
    official_prompts,
    tool_schema,
)
from agentrl.benches.bfcl.environment import BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.records import entry_of_record, expand_categories
from agentrl.benches.bfcl.simulator import INSTALL, MEMORY_BYTES, Simulator
from agentrl.benches.bfcl.web import RecordedSearch
from agentrl.config.benches import Bfcl
from agentrl.core.bench import Bench, Environment, Score, Task
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import ExpertTrace
from agentrl.core.trajectory import Trajectory
from agentrl.models.hub import check_hub

if TYPE_CHECKING:
    from agentrl.core.bench import Play

SECONDS = 10.0  # time limit of one request to the simulated APIs
KEY = "SERPAPI_API_KEY"
ITEMS = {"multi_turn": 200, "memory": 155, "web_search": 100}  # items in each category of a kind
WEB_SECONDS = 120.0  # a page may take the official 20 s
PROBE_SECONDS = 120.0  # for the import of a category's code


class BfclBench(Bench):
    """The bench; see the module docstring. `solve_metric` is the official verdict of the chosen categories."""

    name = "bfcl"

    def __init__(self, config: Bfcl) -> None:
        self.config = config
        self.data, self.categories = DataFiles.of(config.path, expand_categories(config.categories))
        kinds = {category in MULTI_TURN for category in self.categories}
        self.solve_metric = "solved" if len(kinds) == 2 else "valid" if True in kinds else "correct"
        online = config.web == "serpapi" and any(category in WEB_SEARCH for category in self.categories)
        unlimited = "memory_vector" in self.categories  # the encoder reserves more address space than it uses
        self.simulator = Simulator(WEB_SECONDS if online else SECONDS, 0 if unlimited else MEMORY_BYTES)
        self._entries: dict[str, list[Entry]] = {}
        self._train_numbers: dict[str, set[int]] = {}
        self._traces: dict[str, ExpertTrace | None] = {}
        self._usable: tuple[str, ...] | None = None

    # -- tasks -------------------------------------------------------------------------------------------------------

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        entries = [
            entry for category in self.usable_categories() for entry in self.divide(self.entries(category))[split]
        ]
        if split == "train" and not entries:
            raise UserError(
                f"bench.test_fraction={self.config.test_fraction:g} leaves no item to train on; lower it, e.g. to 0.2"
            )
        if limit is not None and limit < len(entries):
            entries = random.Random(seed).sample(entries, limit)
        played = self.config.memory == "played" and split == "test"
        return [self.task(entry, None if played else self.evidence(entry)) for entry in entries]

    def size(self, split: str) -> int:
        """Count the items of the chosen categories that can run here. Without bfcl-eval, count all chosen ones."""
        if importlib.util.find_spec("bfcl_eval") is not None:
            return sum(len(self.divide(self.entries(category))[split]) for category in self.usable_categories())
        sizes = [next(size for kind, size in ITEMS.items() if name.startswith(kind)) for name in self.categories]
        test = sum(min(max(round(self.config.test_fraction * size), 1), size) for size in sizes)
        return test if split == "test" else sum(sizes) - test

    def task(self, entry: Entry, memory_dir: Path | None) -> Task:
        """Make the task of an item, with its first turn. A memory is read from the snapshots in `memory_dir`."""
        if entry.category in MEMORY:
            directory = memory_dir or self.simulator.scratch_dir("empty")
            entry = replace(entry, initial_config=memory_config(entry, directory))
        elif entry.category in WEB_SEARCH:
            shown = entry.category != "web_search_no_snippet"
            entry = replace(entry, initial_config={"WebSearchAPI": {"show_snippet": shown}})
        prompt = [{"role": "user", "content": entry.turns[0]}]
        if system := self.system_prompt(entry):
            prompt.insert(0, {"role": "system", "content": system})
        return Task(
            id=entry.id,
            prompt=prompt,
            tools=[tool_schema(doc) for doc in entry.functions],
            answer=entry.answers[0] if entry.answers else "",
            cluster=cluster_of(entry),
            data={"entry": entry},
        )

    def system_prompt(self, entry: Entry) -> str:
        """Return the official system prompt: what the memory shows, and the answer format of agentic items."""
        parts = []
        if entry.category in MEMORY:
            shown = SimulatedApis(self.simulator, entry.payload).memory()
            parts.append(memory.instruction(entry, shown))
        if entry.answers:
            parts.append(official_prompts().ADDITIONAL_SYSTEM_PROMPT_FOR_AGENTIC_RESPONSE_FORMAT)
        return "\n\n".join(parts)

    def entries(self, category: str) -> list[Entry]:
        """Return all items of a category, in file order."""
        if category not in self._entries:
            self._entries[category] = self.data.entries(category)
        return self._entries[category]

    def divide(self, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
        """Divide items into splits, in file order. The number of an item decides, so its variants stay together."""
        numbers = sorted({entry.number for entry in entries})
        family = entries[0].category.split("_")[0]
        count = min(max(round(self.config.test_fraction * len(numbers)), 1), len(numbers))
        test = set(random.Random(f"bfcl/{family}/{self.config.data_seed}").sample(numbers, count))
        return {
            "train": [entry for entry in entries if entry.number not in test],
            "test": [entry for entry in entries if entry.number in test],
        }

    def usable_categories(self) -> tuple[str, ...]:
        """Return the chosen categories that can run here. The others are printed once, with the reason."""
        if self._usable is None:
            reasons = {category: self._obstacle(category) for category in self.categories}
            self._usable = tuple(category for category in self.categories if reasons[category] is None)
            skipped = [f"bfcl: {category} is skipped: {reason}" for category, reason in reasons.items() if reason]
            if not self._usable:
                raise UserError("bench.categories: none can run here; " + "; ".join(skipped))
            for line in skipped:
                print(line, file=sys.stderr)
        return self._usable

    def _obstacle(self, category: str) -> str | None:
        name = self.entries(category)[0].classes[0]
        if category in MULTI_TURN or (category in WEB_SEARCH and self.config.web == "replay"):
            return None
        if category in WEB_SEARCH and not os.environ.get(KEY):
            return f"it needs SerpApi; set {KEY}, or bench.web=replay (recorded pages, not official)"
        if category == "memory_vector":
            return self._load_encoder()
        missing = self.simulator.ask("probe", timeout=PROBE_SECONDS, classes=[name])["missing"].get(name)
        if missing is None:
            return None
        web = "; pip install google-search-results html2text beautifulsoup4 requests"
        return missing + (web if category in WEB_SEARCH else f"; {INSTALL}")

    def _load_encoder(self) -> str | None:
        path = self.config.encoder
        if not Path(path).expanduser().exists():
            try:
                check_hub("bench.encoder", path, "model", None, "run make minilm and set bench.encoder=models/minilm")
            except UserError as error:
                return str(error)
        else:
            path = str(Path(path).expanduser().absolute())  # the child works in another directory
        return self.simulator.load_encoder(path)

    # -- memory ------------------------------------------------------------------------------------------------------

    def evidence(self, entry: Entry) -> Path | None:
        """Write snapshots with the evidence of the questions that share the memory of `entry` (ours, not official)."""
        if entry.category not in MEMORY:
            return None
        first = self.data.conversations(entry.category, entry.scenario)[0]
        place = "evidence-train" if self._trains(entry) else "evidence"
        return memory.write_evidence(self.simulator, first, self._same_memory(entry), place)

    def _same_memory(self, entry: Entry) -> list[Entry]:
        """List the questions of a scenario; for a training item only those of training, or it would show the test's."""
        known = [other for other in self.entries(entry.category) if other.scenario == entry.scenario]
        return [other for other in known if self._trains(other)] if self._trains(entry) else known

    def _trains(self, entry: Entry) -> bool:
        if entry.category not in self._train_numbers:
            train = self.divide(self.entries(entry.category))["train"]
            self._train_numbers[entry.category] = {other.number for other in train}
        return entry.number in self._train_numbers[entry.category]

    def prepare(self, tasks: list[Task], play: Play, directory: Path) -> list[Task]:
        """Let the policy play the conversations that memory questions build on (`memory=played`); see `memory.py`."""
        asked = [task for task in tasks if task.data["entry"].category in MEMORY]
        if self.config.memory != "played" or not asked:
            return tasks
        memory.hold_conversations(
            self.data,
            [task.data["entry"] for task in asked],
            lambda entry: self.task(entry, directory),
            play,
            directory,
        )
        ready = []
        for task in tasks:
            entry: Entry = task.data["entry"]
            if entry.category not in MEMORY:
                ready.append(task)
            elif memory.are_all_played(directory, entry, self.data):
                ready.append(self.task(entry, directory))
        return ready

    # -- episodes ----------------------------------------------------------------------------------------------------

    def environment(self, task: Task) -> Environment:
        entry: Entry = task.data["entry"]
        if entry.category in WEB_SEARCH and self.config.web == "replay":
            return BfclEnvironment(entry, RecordedSearch(entry).execute)
        return BfclEnvironment(entry, SimulatedApis(self.simulator, entry.payload))

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        """Return the official verdict: `valid` for multi-turn items, `correct` for answers, `solved` if both occur."""
        entry: Entry = task.data["entry"]
        verdict, _ = verdicts.judge(self.simulator, entry, verdicts.turns_of(trajectory.messages))
        return Score({self.solve_metric: verdict}, task.cluster, {"category": entry.category})

    def score_transcript(self, record: dict[str, Any]) -> tuple[dict[str, float | None], str | None]:
        """Score an episode of another program. Returns the metrics, and the official error type if it failed.

        `record` names its item by `id` (or `row_id`), or by `row` and, if several categories are configured,
        `category`. It has one of: `turns` (for each user turn a list of steps, each {"calls": [{"name", "arguments"}]}
        or {"text"}); `messages` (raw assistant texts, or with `tool_calls`); or, for memory and web search, `response`,
        the last message without a call. Only calls of the item's functions with JSON arguments are executed. A record
        that cannot be scored returns no metrics and the reason.
        """
        try:
            entry = entry_of_record(record, self.categories, self.entries)
            if entry.answers and "response" in record:
                verdict, reason = verdicts.judge_answer(self.simulator, entry, record["response"])
            else:
                verdict, reason = verdicts.judge(self.simulator, entry, verdicts.turns_of_record(record))
        except ValueError as error:
            return {}, str(error)
        return {"correct" if entry.answers else "valid": verdict}, reason

    def expert_trace(self, task: Task) -> ExpertTrace | None:
        """Return a checked trace of the gold calls. For memory and web search it looks up the evidence (ours)."""
        entry: Entry = task.data["entry"]
        if entry.category in WEB_SEARCH and self.config.web != "replay":
            return None  # a trace would need paid searches, whose results change from day to day
        if task.id not in self._traces:
            self._traces[task.id] = traces.expert_trace(
                entry, self.environment(task), self.simulator, self._same_memory(entry)
            )
        return self._traces[task.id]

    def reference_calls(self, task: Task) -> list[dict[str, Any]]:
        entry: Entry = task.data["entry"]
        return traces.reference_calls(entry, self._same_memory(entry))


def cluster_of(entry: Entry) -> str:
    """Name the cluster of an item: variants of one item, or questions that share a memory."""
    kind = "memory" if entry.category in MEMORY else "web_search" if entry.category in WEB_SEARCH else "multi_turn"
    return f"{kind} {entry.scenario or entry.number}"
