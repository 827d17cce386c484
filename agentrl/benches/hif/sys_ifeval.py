"""S-IFEval (SystemCheck / RealGuardrails): IFEval with its instructions in the system prompt, graded by a program.


Every row is aligned: the user asks only for the task. Reference rows have everything in the user's message; give
ifeval.jsonl or ifeval_sep.jsonl as the path. r_sys is the share of instructions that the reply follows. No program can
grade r_user; a judge does, or `proxy.user_proxy` replaces it.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from agentrl.benches.hif.base import Pair, SingleTurn, answer_of
from agentrl.benches.hif.files import Row, find_files, rows_of
from agentrl.benches.hif.ifeval_rules import OFFICIAL, RELATIONS, check_loosely, check_strictly
from agentrl.benches.hif.proxy import user_proxy
from agentrl.config.benches import SysIFEval
from agentrl.core.bench import Task

LISTS = ("keywords", "forbidden_words")


class SysIFEvalBench(SingleTurn):
    """The bench; see the module docstring."""

    name = "sys_ifeval"

    def __init__(self, config: SysIFEval) -> None:
        super().__init__(config.test_fraction, config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        (file,) = find_files(self.config.path, ("sys_ifeval",)).values()
        return [pair_of(row) for row in rows_of(file)]

    def metrics(self, task: Task, response: str) -> dict[str, float]:
        """Return the four accuracies, and `user_proxy` until a judge gives r_user.

        An accuracy at instruction level is the share of this row's instructions.
        """
        verdicts = self.transcript(task, answer_of(response))
        shares = {level: sum(verdicts[level]) / len(verdicts[level]) for level in ("strict", "loose")}
        return {
            "r_sys": shares["strict"],
            "violation": float(not verdicts["prompt_strict"]),
            "prompt_strict": float(verdicts["prompt_strict"]),
            "prompt_loose": float(verdicts["prompt_loose"]),
            "instruction_strict": shares["strict"],
            "instruction_loose": shares["loose"],
            "user_proxy": user_proxy(task.data["user"], answer_of(response)),
        }

    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        verdicts = check_strictly(
            answer_of(response), task.data["ids"], task.data["arguments"], self.config.reward_rules
        )
        return {"user": None, "sys": sum(verdicts) / len(verdicts)}

    def transcript(self, task: Task, response: str) -> dict[str, Any]:
        given = task.data["ids"], task.data["arguments"], self.config.rules
        exact, lenient = check_strictly(response, *given), check_loosely(response, *given)
        return {"strict": exact, "loose": lenient, "prompt_strict": all(exact), "prompt_loose": all(lenient)}


def pair_of(row: Row) -> Pair:
    """Check one row and return it. Its instructions must be known, with all their arguments of the right type."""
    messages = row.messages()
    ids = row.get("instruction_id_list", list, "a list of instruction ids")
    kwargs = row.get("kwargs", list, "a list of arguments")
    if not ids or len(ids) != len(kwargs):
        row.refuse("kwargs", f"{len(kwargs)} for {len(ids)} instructions")
    arguments = [arguments_of(row, name, given) for name, given in zip(ids, kwargs, strict=True)]
    kind = "aligned" if messages[0]["role"] == "system" else "reference"
    return Pair(row.number, kind, messages, {"ids": ids, "arguments": arguments})


def arguments_of(row: Row, name: Any, given: Any) -> dict[str, Any]:
    """Return the arguments of the check `name`. Upstream draws missing arguments at random; here they are an error."""
    if not isinstance(name, str) or name not in OFFICIAL:
        row.refuse("instruction_id_list", f"{name!r} is not a known instruction")
    if not isinstance(given, dict):
        row.refuse("kwargs", f"{name}: expected an object, got {type(given).__name__}")
    arguments = {}
    for key in list(inspect.signature(OFFICIAL[name]).parameters)[1:]:
        value = arguments[key] = given.get(key)
        if key in LISTS:
            fits = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
        elif key.startswith(("num_", "nth_")) or key.endswith("frequency"):
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else:
            fits = isinstance(value, str) and (value in RELATIONS or not key.endswith("relation"))
        if not fits:
            row.refuse("kwargs", f"{name}: {key} is {json.dumps(value)}")
    return arguments
