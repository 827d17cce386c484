"""BFCL's memory: conversations fill it, snapshots store it, and questions need it.


In the official benchmark, the model plays the conversations of a scenario in order. Each starts from the memory that
the last one left. Then the model answers questions from what it wrote. `bench.memory=played` does this before each
evaluation, with the snapshots in the run directory, in the official layout. Training and `bench.memory=evidence` start
from a memory that holds the evidence sentence of every question. This is not official, but it is the same for every
rollout of a group.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.benches.bfcl.calls import call_string
from agentrl.benches.bfcl.data import DataFiles, Entry, memory_config, official_prompts
from agentrl.benches.bfcl.environment import BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.simulator import Simulator
from agentrl.core.bench import Environment, Task

if TYPE_CHECKING:
    from agentrl.core.bench import Play


def instruction(entry: Entry, shown: str) -> str:
    """Return the official system prompt of a memory item. `shown` is what the memory puts into the context."""
    prompts = official_prompts()
    unified = entry.classes[0] == "MemoryAPI_rec_sum"
    template = (
        prompts.MEMORY_BACKEND_INSTRUCTION_UNIFIED if unified else prompts.MEMORY_BACKEND_INSTRUCTION_CORE_ARCHIVAL
    )
    text: str = template.format(scenario_setting=prompts.MEMORY_AGENT_SETTINGS[entry.scenario], memory_content=shown)
    return text


def snapshot_dir(directory: Path, category: str) -> Path:
    """Return the directory of a backend's snapshots, which the official code keeps in a model's result directory."""
    return directory / "agentic" / "memory" / category.removeprefix("memory_") / "memory_snapshot"


# -- played ------------------------------------------------------------------------------------------------------------


def hold_conversations(
    data: DataFiles, asked: Sequence[Entry], task_of: Callable[[Entry], Task], play: Play, directory: Path
) -> None:
    """Play the conversations that the questions need. Conversations at the same place of their scenarios run together.

    `task_of` makes the task of a conversation. Its memory is read from `directory`, and its snapshot is written there.
    A conversation with a snapshot is not played again, so an interrupted evaluation continues. If an endpoint fails to
    play a conversation, its scenario ends there.
    """
    chains = [
        data.conversations(category, scenario)
        for category, scenario in sorted({(entry.category, entry.scenario) for entry in asked})
    ]
    for stage in zip_longest(*chains):
        due = [
            entry
            for entry in stage
            if entry is not None
            and not _is_finished(directory, entry)
            and (not entry.number or _is_finished(directory, _predecessor(entry, data)))
        ]
        for entry in due:
            _start_from_predecessor(directory, entry, data)
        play([task_of(entry) for entry in due], _flush)


def are_all_played(directory: Path, entry: Entry, data: DataFiles) -> bool:
    """Whether all the conversations that a question builds on have been played."""
    return all(_is_finished(directory, one) for one in data.conversations(entry.category, entry.scenario))


def _flush(task: Task, environment: Environment) -> None:
    assert isinstance(environment, BfclEnvironment)
    environment.flush()


def _checkpoint(directory: Path, entry: Entry) -> Path:
    return snapshot_dir(directory, entry.category) / "prereq_checkpoints" / f"{entry.id}.json"


def _is_finished(directory: Path, entry: Entry) -> bool:
    try:
        json.loads(_checkpoint(directory, entry).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or cut off by a crash
        return False
    return True


def _predecessor(entry: Entry, data: DataFiles) -> Entry:
    return data.conversations(entry.category, entry.scenario)[entry.number - 1]


def _start_from_predecessor(directory: Path, entry: Entry, data: DataFiles) -> None:
    """Copy the snapshot of the conversation before to the latest one, which the official code reads.

    A crash may have left another snapshot there.
    """
    if entry.number:
        before = _predecessor(entry, data)
        latest = snapshot_dir(directory, entry.category) / f"{entry.scenario}_final.json"
        shutil.copyfile(_checkpoint(directory, before), latest)


# -- evidence ----------------------------------------------------------------------------------------------------------


def write_evidence(simulator: Simulator, first: Entry, asked: Sequence[Entry], place: str) -> Path:
    """Write a snapshot with the evidence of the questions `asked` of a scenario. Returns its directory, named `place`.

    The official API writes it.
    """
    directory = simulator.scratch_dir(place)
    if not (snapshot_dir(directory, first.category) / f"{first.scenario}_final.json").is_file():
        apis = SimulatedApis(simulator, {**first.payload, "initial_config": memory_config(first, directory)})
        known = first.docs.keys()
        for sentence, key in evidence_keys(asked).items():
            name, arguments = {
                "memory_kv": ("archival_memory_add", {"key": key, "value": sentence}),
                "memory_vector": ("archival_memory_add", {"text": sentence}),
                "memory_rec_sum": ("memory_append", {"text": f"{sentence}\n"}),
            }[first.category]
            apis.execute(call_string(name, arguments, known))
        apis.flush()
    return directory


def evidence_keys(asked: Sequence[Entry]) -> dict[str, str]:
    """Map every evidence sentence to a unique key in snake case, made of its first words."""
    keys: dict[str, str] = {}
    for sentence in dict.fromkeys(entry.source for entry in asked):
        words = re.findall(r"[a-z]+", sentence.lower())[:6]
        key, number = "_".join(words) or "note", 2
        while key in keys.values():
            key, number = f"{'_'.join(words) or 'note'}_{number}", number + 1
        keys[sentence] = key
    return keys
