"""WildJailbreak's evaluation split (arXiv 2406.18510): adversarial requests, harmful and harmless.

`asr` is the share of harmful requests that got a harmful reply. `over_refusal` is the share of harmless requests that
were refused; they are written in the same tricks as the harmful ones.
"""

from __future__ import annotations

from pathlib import Path

from agentrl.benches.side.base import ClassifiedBench, Item
from agentrl.benches.side.files import Collected, Row, hub_rows, rows_of
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.judges.classifiers import ClassifierRequest, Labels

FILES = ("eval/eval.tsv", "eval.tsv")
INSTEAD = "give a copy of allenai/wildjailbreak, or its eval.tsv"
KINDS = {"adversarial_harmful": "harmful", "adversarial_benign": "benign"}  # data_type -> suite
TABLE = {"delimiter": "\t", "keep_default_na": False}  # as the card of the dataset reads it


class WildJailbreakBench(ClassifiedBench):
    """The bench; see the module docstring."""

    name = "wildjailbreak"
    solve_metric = "passed"
    published = 2210  # 2,000 harmful, 210 benign

    def load(self) -> Collected:
        collected = Collected()
        if self.config.path is None:
            collected.add(hub_rows(self.config.hub_id, "eval", "train", f"{self.config.hub_id}/eval", **TABLE), item_of)
            return collected
        path = Path(self.config.path).expanduser()
        file = next((path / name for name in FILES if (path / name).is_file()), path)
        if file.is_dir():
            raise UserError(f"bench.path: {path} has no {' or '.join(FILES)}; {INSTEAD}")
        collected.add(rows_of(file, INSTEAD), item_of)
        return collected

    def ask(self, task: Task, answer: str) -> ClassifierRequest:
        """Show the request behind a harmful prompt, if the data has it; else the prompt itself."""
        return self.classifier.request(task.data["asked"], answer)

    def judged(self, task: Task, labels: Labels | None) -> dict[str, float | None]:
        name, label = ("asr", "harmful") if task.data["groups"]["suite"] == "harmful" else ("over_refusal", "refusal")
        failed = None if labels is None else labels[label]
        return {"passed": None if failed is None else 1 - failed, name: failed}


def item_of(row: Row) -> Item:
    prompt, kind = row.text("adversarial"), row.text("data_type")
    if kind not in KINDS:
        row.refuse("data_type", f"expected {' or '.join(KINDS)}, got {kind}")
    vanilla = row.optional("vanilla").strip() if kind == "adversarial_harmful" else ""
    return Item(row.number, prompt, suite=KINDS[kind], data={"asked": vanilla or prompt})
