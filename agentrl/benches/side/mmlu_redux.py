"""MMLU-Redux (arXiv 2406.04127): MMLU's questions, whose errors were annotated. Zero-shot, with a chain of thought.

The prompt and the reading of answers are ZeroEval's, in which published figures of MMLU-Redux are mostly measured. A
reply is right if the `answer` of its first JSON object is the letter of the right choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.benches.side.base import Item, SideBench
from agentrl.benches.side.files import SUFFIXES, Collected, Row, hub_rows, not_on_hub, rows_of
from agentrl.config.side_benches import MmluRedux
from agentrl.core.bench import Task
from agentrl.core.errors import UserError

LETTERS = "ABCD"
INSTEAD = "give a copy of edinburgh-dawg/mmlu-redux-2.0, or one of its files"
SHARD = re.compile(r"-\d+-of-\d+$")  # a piece of a table, as `datasets` names it
ABOUT_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")  # they describe an Arrow file beside them
# ZeroEval's words; some of its lines end with a blank
PROMPT = """
## Question:\x20

{question}

## Choices:

{choices}

## Instruction\x20

Please answer this question by first reasoning and then selecting the correct choice.\x20
Present your reasoning and solution in the following json format.\x20
Please show your choice in the `answer` field with only the choice letter, e.g.,`"answer": "C"`.

```json
{
    "reasoning": "___",
    "answer": "___"
}
```
"""
# Where an answer stands in a text without a complete object: quoted, without quotes, or behind a bare word.
ANSWERS = (r'"answer"\s*:\s*"([^"]*?)"', r'"answer"\s*:\s*([^,\s]*)', r"answer\s*:\s*([^,\s]*)")


class MmluReduxBench(SideBench):
    """The bench; see the module docstring."""

    name = "mmlu_redux"
    solve_metric = "accuracy"
    published = 5700  # 57 subjects with 100 questions each, those with an error included

    def load(self) -> Collected:
        config: MmluRedux = self.config
        collected = Collected()
        parts = self._hub_parts() if config.path is None else local_parts(Path(config.path).expanduser())
        known = []
        for subject, rows in parts:
            known.append(subject)
            if config.subjects is None or subject in config.subjects:
                collected.add(rows, lambda row, subject=subject: item_of(row, subject, config.errors))  # type: ignore[misc]
        unknown = [subject for subject in config.subjects or [] if subject not in known]
        if unknown:
            raise UserError(
                f"bench.subjects: the data has no {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
            )
        return collected

    def _hub_parts(self) -> Iterator[tuple[str, Iterator[Row]]]:
        from datasets import get_dataset_config_names

        hub_id = self.config.hub_id
        try:
            subjects = get_dataset_config_names(hub_id)
        except Exception as error:  # the hub and the network raise many kinds of errors
            raise not_on_hub(hub_id, error) from error
        for subject in subjects:
            yield subject, hub_rows(hub_id, subject, "test", f"{hub_id}/{subject}")

    def metrics(self, task: Task, answer: str) -> dict[str, float | None]:
        """Return `accuracy`, and `no_answer` for a reply in which no answer was found (it counts as wrong)."""
        chosen = chosen_answer(answer)
        right = chosen == task.answer or (isinstance(chosen, str) and f"{task.answer})" in chosen)
        return {"accuracy": float(right), "no_answer": float(chosen is None)}


def local_parts(root: Path) -> Iterator[tuple[str, Iterator[Row | str]]]:
    """Yield each subject with its rows: of a directory, which is named like the subject, or of a file."""
    if not root.is_dir():
        yield _subject(root.stem), rows_of(root, INSTEAD)
        return
    files = [file for file in sorted(root.glob("*")) + sorted(root.glob("*/*")) if file.suffix in SUFFIXES]
    files = [file for file in files if file.name not in ABOUT_FILES]
    if not files:
        raise UserError(f"bench.path: {root} has no file of questions; {INSTEAD}")
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_subject(file.stem if file.parent == root else file.parent.name), []).append(file)
    for subject, of_subject in parts.items():
        if len(of_subject) > 1 and not all(SHARD.search(file.stem) for file in of_subject):
            names = ", ".join(str(file.relative_to(root)) for file in of_subject)
            raise UserError(f"bench.path: {root} has several files for {subject} ({names}); leave one, or {INSTEAD}")
        yield subject, _join(of_subject)


def _join(files: list[Path]) -> Iterator[Row | str]:
    """Yield the rows of the pieces of one table, numbered through."""
    before = 0
    for file in files:
        number = -1
        for number, row in enumerate(rows_of(file, INSTEAD)):
            yield row if isinstance(row, str) or not before else Row(str(file.parent), before + number, row.content)
        before += number + 1


def _subject(name: str) -> str:
    return name.removeprefix("mmlu_")


def item_of(row: Row, subject: str, errors: str) -> Item | None:
    """Check one row. Returns None for a question with an error that is not asked."""
    question, choices = row.text("question"), row.get("choices", list, "a list of four texts")
    if len(choices) != len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        row.refuse("choices", "expected a list of four texts")
    answer, kind = row.get("answer", int, "a number from 0 to 3"), row.text("error_type")
    if not 0 <= answer < len(LETTERS):
        row.refuse("answer", f"expected a number from 0 to 3, got {answer}")
    if kind != "ok":
        corrected = named_choice(row.content.get("correct_answer")) if kind == "wrong_groundtruth" else None
        if errors == "drop" or corrected is None:
            return None
        answer = corrected
    shown = "".join(f"- ({letter}) {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    # upstream looks the choice up by its text, so the first of two equal choices is the right one
    letter = LETTERS[choices.index(choices[answer])]
    prompt = PROMPT.replace("{question}", question).replace("{choices}", shown)
    return Item(
        row.number, prompt, answer=letter, suite=subject, groups={"error_type": kind} if errors == "correct" else {}
    )


def named_choice(correct: Any) -> int | None:
    """Return the choice that the annotators name by its letter or its number. None if they name none, or several."""
    text = str(correct).strip()
    if len(text) != 1 or text not in LETTERS + "0123":
        return None
    return LETTERS.index(text) if text in LETTERS else int(text)


def chosen_answer(reply: str) -> Any:
    """Return the answer in a reply, as ZeroEval finds it: a value of any type, or None if there is none.

    It is the `answer` of the first complete JSON object. In a text without one, it is what stands behind "answer:".
    """
    verdict = first_object(reply)
    if verdict is None or "answer" not in verdict:
        found = next((match[1] for pattern in ANSWERS if (match := re.search(pattern, reply))), None)
    else:
        found = verdict["answer"]
    return None if found == "" else found


def first_object(text: str) -> dict[str, Any] | None:
    """Parse the first block of balanced braces, without its line breaks. None if it is no JSON."""
    depth = start = 0
    for place, character in enumerate(text):
        if character == "{":
            start = place if depth == 0 else start
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                try:
                    found: dict[str, Any] = json.loads(text[start : place + 1].replace("\n", ""))
                except (ValueError, RecursionError):  # the model wrote something else in braces
                    return None
                return found
    return None
