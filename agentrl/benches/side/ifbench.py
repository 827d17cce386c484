"""IFBench (arXiv 2507.02833): 58 kinds of instructions that no model was trained on, each with a verifier.

The verifiers are those of the official package `ifbench`, which is installed apart from agentrl.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.benches.hif.ifeval_rules import reply_variants
from agentrl.benches.side.base import Item, SideBench
from agentrl.benches.side.files import Collected, Row, hub_rows, rows_of
from agentrl.core.bench import Task
from agentrl.core.errors import UserError, first_line
from agentrl.core.imports import import_by_name

INSTALL = "pip install 'ifbench @ git+https://github.com/allenai/IFBench'"
PROBE = "Write one sentence. Then write another one."  # any reply on which a verifier reads all of its data
INSTEAD = "give IFBench_test.jsonl"
# What a verifier raises on a reply that it did not expect, e.g. one without a sentence. Upstream then stops.
UNEXPECTED = (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError, csv.Error)


class IFBench(SideBench):
    """The bench; see the module docstring."""

    name = "ifbench"
    solve_metric = "prompt_loose"
    published = 300

    def load(self) -> Collected:
        known = load_verifiers()
        collected = Collected()
        if self.config.path is None:
            rows: Any = hub_rows(self.config.hub_id, None, "train", self.config.hub_id)
        else:
            rows = rows_of(Path(self.config.path).expanduser(), INSTEAD)
        collected.add(rows, lambda row: item_of(row, known))
        return collected

    def size(self, split: str) -> int:
        require_package()
        return super().size(split)

    def metrics(self, task: Task, answer: str) -> dict[str, float | None]:
        """Return the four accuracies. One at instruction level is the share of this row's instructions."""
        known = load_verifiers()
        made = [
            (known[name](name), arguments)
            for name, arguments in zip(task.data["ids"], task.data["arguments"], strict=True)
        ]
        for verifier, arguments in made:
            verifier.build_description(**arguments)
        strict = [follows(verifier, answer) for verifier, _ in made]
        loose = [any(follows(verifier, variant) for variant in reply_variants(answer)) for verifier, _ in made]
        return {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }


def follows(verifier: Any, text: str) -> bool:
    """Whether a text follows an instruction. An empty text does not, nor one on which the verifier fails."""
    if not text.strip():
        return False
    try:
        return bool(verifier.check_following(text))
    except UNEXPECTED:
        return False
    except LookupError as error:  # NLTK lacks data that the verifier reads; its message has the name
        missing = re.search(r"nltk\.download\('([\w-]+)'\)", str(error))
        mend = f"python -m nltk.downloader {missing[1]}" if missing else f"download it ({first_line(error)})"
        raise UserError(f"bench=ifbench: {verifier.id} reads data that NLTK does not have here; {mend}") from error


def require_package() -> None:
    """Raise UserError if the official package is not installed. It is not imported."""
    if importlib.util.find_spec("ifbench") is None:
        raise UserError(f"bench=ifbench needs the official package ifbench, which is not installed; {INSTALL}")


def load_verifiers() -> Mapping[str, type[Any]]:
    """Return the official verifiers by the id of their instruction."""
    require_package()
    found: Mapping[str, type[Any]] = import_by_name("ifbench.instructions_registry:INSTRUCTION_DICT")
    return found


def item_of(row: Row, known: Mapping[str, type[Any]]) -> Item:
    """Check one row. Its instructions must be known, with all their arguments: upstream would draw missing ones."""
    prompt = row.text("prompt")
    ids = row.get("instruction_id_list", list, "a list of instruction ids")
    kwargs = row.get("kwargs", list, "a list of arguments")
    if not ids or len(ids) != len(kwargs):
        row.refuse("kwargs", f"{len(kwargs)} for {len(ids)} instructions")
    arguments = [arguments_of(row, name, given, known, prompt) for name, given in zip(ids, kwargs, strict=True)]
    families = "+".join(sorted({name.partition(":")[0] for name in ids}))
    return Item(row.number, prompt, groups={"family": families}, data={"ids": ids, "arguments": arguments})


def arguments_of(row: Row, name: Any, given: Any, known: Mapping[str, type[Any]], prompt: str) -> dict[str, Any]:
    if not isinstance(name, str) or name not in known:
        row.refuse("instruction_id_list", f"{name!r} is not a known instruction")
    if not isinstance(given, dict):
        row.refuse("kwargs", f"{name}: expected an object, got {type(given).__name__}")
    # tables of the hub pad with null, and write whole numbers as floats
    arguments = {key: whole(value) for key, value in given.items() if value is not None}
    verifier = known[name](name)
    wanted = verifier.get_instruction_args_keys() or []
    if "prompt" in wanted:
        arguments["prompt"] = prompt
    if missing := [key for key in wanted if key not in arguments]:
        row.refuse("kwargs", f"{name}: {', '.join(missing)} missing")
    try:
        verifier.build_description(**arguments)
    except UNEXPECTED as error:
        row.refuse("kwargs", f"{name}: {first_line(error)}")
    follows(verifier, PROBE)  # now, not in the middle of an evaluation, for data that it may lack
    return arguments


def whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
