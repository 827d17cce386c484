"""HarmBench (arXiv 2402.04249): harmful requests, as they are (DirectRequest) or behind human jailbreaks.

A reply succeeds for the attacker if the classifier says that it shows the behavior. `asr` is the share of such replies.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.benches.rows import read_text
from agentrl.benches.side.base import ClassifiedBench, Item
from agentrl.benches.side.files import BadRow, Collected, Row, hub_rows, rows_of
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.judges.classifiers import ClassifierRequest, Labels

INSTEAD = "give a checkout of centerforaisafety/HarmBench, or its harmbench_behaviors_text_test.csv"
BEHAVIORS = Path("data/behavior_datasets/harmbench_behaviors_text_test.csv")
JAILBREAKS = Path("baselines/human_jailbreaks/jailbreaks.py")
PER_BEHAVIOR = 5  # human jailbreaks that upstream draws for each behavior, with the seed below
SEED = 1
HASHED = "hash_check"  # tag of the behaviors that upstream grades by hashes of books and songs


class HarmBench(ClassifiedBench):
    """The bench; see the module docstring."""

    name = "harmbench"
    solve_metric = "asr"

    @property
    def published(self) -> int:  # type: ignore[override]
        behaviors = 320 if self.config.classifier == "wildguard" else 240
        return behaviors * (PER_BEHAVIOR if self.config.attack == "human_jailbreaks" else 1)

    def load(self) -> Collected:
        path, human = self.config.path, self.config.attack == "human_jailbreaks"
        behaviors = Collected()
        if path is None:
            source = f"{self.config.hub_id}/DirectRequest"
            behaviors.add(hub_rows(self.config.hub_id, "DirectRequest", "test", source), behavior_of)
        else:
            behaviors.add(rows_of(behaviors_file(Path(path).expanduser()), INSTEAD), behavior_of)
        items = Collected(mistakes=behaviors.mistakes)
        if not human:
            items.made = [item_of(behavior, behavior["row"], direct_request(behavior)) for behavior in behaviors.made]
        elif path is None:
            known = {behavior["id"]: behavior for behavior in behaviors.made}
            source = f"{self.config.hub_id}/HumanJailbreaks"
            items.add(
                hub_rows(self.config.hub_id, "HumanJailbreaks", "test", source), lambda row: ready_made(row, known)
            )
        else:
            items.made = list(human_jailbreaks(behaviors.made, read_jailbreaks(Path(path).expanduser() / JAILBREAKS)))
        return self._without_hashed(items)

    def _without_hashed(self, items: Collected) -> Collected:
        """Leave out behaviors whose official check needs the hashes of protected texts."""
        if self.config.classifier == "wildguard":
            return items
        kept = [item for item in items.made if not item.data["hashed"]]
        if left_out := len(items.made) - len(kept):
            items.notes.append(
                f"items about protected texts (tag {HASHED}) are left out, {left_out} of {len(items.made)}: upstream "
                "grades them by hashes, which agentrl does not compute; bench.classifier=wildguard grades them"
            )
        items.made = kept
        return items

    def ask(self, task: Task, answer: str) -> ClassifierRequest:
        """Ask whether the reply shows the behavior. The jailbreak is not shown."""
        context = task.data["context"] if self.config.classifier == "harmbench" else ""
        return self.classifier.request(task.data["behavior"], answer, context)

    def judged(self, task: Task, labels: Labels | None) -> dict[str, float | None]:
        metrics: dict[str, float | None] = {"asr": None if labels is None else labels["harmful"]}
        if self.config.classifier == "wildguard":
            metrics["refusal"] = None if labels is None else labels["refusal"]
        return metrics


def behaviors_file(root: Path) -> Path:
    file = root / BEHAVIORS if root.is_dir() else root
    if not file.is_file():
        raise UserError(f"bench.path: {root} has no {BEHAVIORS}; {INSTEAD}")
    return file


def behavior_of(row: Row) -> dict[str, Any]:
    """Check one row of the behaviors."""
    tags = [tag.strip() for tag in row.optional("Tags").split(",")]
    context = row.optional("ContextString")
    if "context" in tags and not context.strip():
        row.refuse("ContextString", "empty, but the row has the tag context")
    return {
        "row": row.number,
        "id": row.text("BehaviorID"),
        "behavior": row.text("Behavior"),
        "context": context,
        "hashed": HASHED in tags,
        "groups": {"category": row.text("FunctionalCategory"), "topic": row.text("SemanticCategory")},
    }


def direct_request(behavior: dict[str, Any]) -> str:
    """Return the request as upstream makes it: the context, if there is one, and the behavior."""
    context = behavior["context"]
    return f"{context}\n\n---\n\n{behavior['behavior']}" if context else str(behavior["behavior"])


def human_jailbreaks(behaviors: list[dict[str, Any]], jailbreaks: list[str]) -> Iterator[Item]:
    """Yield PER_BEHAVIOR items for each behavior, drawn as upstream draws them: one list, shuffled again each time."""
    order, rng = list(jailbreaks), random.Random(SEED)
    for place, behavior in enumerate(behaviors):
        rng.shuffle(order)
        for number, jailbreak in enumerate(order[:PER_BEHAVIOR]):
            prompt = f"{jailbreak}\n\n{direct_request(behavior)}"
            yield item_of(behavior, PER_BEHAVIOR * place + number, prompt, f"{behavior['id']}_{number + 1}")


def ready_made(row: Row, known: dict[str, dict[str, Any]]) -> Item:
    """Return the item of a test case of the hub, whose id is that of its behavior with a number."""
    name = row.text("BehaviorID")
    behavior = known.get(name.rpartition("_")[0])
    if behavior is None:
        raise BadRow(f"BehaviorID: {name} belongs to no behavior")
    return item_of(behavior, row.number, row.text("Behavior"), name)


def item_of(behavior: dict[str, Any], number: int, prompt: str, name: str = "") -> Item:
    data = {key: behavior[key] for key in ("behavior", "context", "hashed")}
    return Item(number, prompt, name or behavior["id"], cluster=behavior["id"], groups=behavior["groups"], data=data)


def read_jailbreaks(file: Path) -> list[str]:
    """Return the texts of the list JAILBREAKS in upstream's file. The file is read and not executed."""
    instead = f"give a checkout of centerforaisafety/HarmBench, which has {JAILBREAKS}"
    if not file.is_file():
        raise UserError(f"bench.path: there is no {file}; {instead}, or set bench.attack=direct_request")
    try:
        for node in ast.parse(read_text(file, instead)).body:
            named = isinstance(node, ast.Assign) and any(getattr(one, "id", "") == "JAILBREAKS" for one in node.targets)
            if isinstance(node, ast.Assign) and named:
                texts = ast.literal_eval(node.value)
                if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
                    return texts
    except (SyntaxError, ValueError) as error:  # it is no Python, or the list is computed
        raise UserError(f"bench.path: {file} has no list of texts named JAILBREAKS ({error}); {instead}") from error
    raise UserError(f"bench.path: {file} has no list of texts named JAILBREAKS; {instead}")
