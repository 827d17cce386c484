"""VerIH (skai-research/VerIH): a constraint in the system prompt, and a request that agrees with it or conflicts.

r_sys is the check of the constraint. No program can grade r_user; a judge does, or `proxy.user_proxy` replaces it.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from agentrl.benches.hif.base import SPLITS, Pair, SingleTurn, answer_of
from agentrl.benches.hif.files import Row, find_files, rows_of
from agentrl.benches.hif.proxy import user_proxy
from agentrl.benches.hif.verih_rules import OFFICIAL, check, reward
from agentrl.config.benches import VerIH
from agentrl.core.bench import Task
from agentrl.core.jsonl import explain_json, read_json

NUMBERS = ("n", "i")
LISTS = ("keyword_list", "forbidden_words")


class VerIHBench(SingleTurn):
    """The bench; see the module docstring. A directory may have upstream's train file besides the test file."""

    name = "verih"

    def __init__(self, config: VerIH) -> None:
        super().__init__(config.test_fraction, config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        files = find_files(self.config.path, SPLITS)
        both = len(files) == 2
        return [pair_of(row, split if both else "") for split, file in files.items() for row in rows_of(file)]

    def divide(self) -> dict[str, list[Pair]]:
        given = {split: [row for row in self.rows if row.suite == split] for split in SPLITS}
        return given if all(given.values()) else super().divide()

    def groups(self, task: Task) -> dict[str, str]:
        return {"kind": task.data["kind"], "constraint": task.data["type"]}

    def metrics(self, task: Task, response: str) -> dict[str, float]:
        """Return the metrics, with `user_proxy` until a judge gives r_user.

        `check` is the constraint alone. By the official rules, `reward` also needs a think block.
        """
        verdict = self.transcript(task, response)
        return {
            "r_sys": float(verdict["check"]),
            "violation": float(not verdict["check"]),
            "check": float(verdict["check"]),
            "reward": verdict["reward"],
            "user_proxy": user_proxy(task.data["user"], answer_of(response)),
        }

    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        met = check(response, task.data["function"], task.data["arguments"], self.config.reward_rules)
        return {"user": None, "sys": float(met)}

    def transcript(self, task: Task, response: str) -> dict[str, Any]:
        given = response, task.data["function"], task.data["arguments"], self.config.rules
        return {"reward": reward(*given), "check": check(*given)}


def pair_of(row: Row, suite: str) -> Pair:
    """Check one row and return it. Its constraint must be known, with all its arguments of the right type."""
    system, user, kind = row.text("sys_prompt"), row.text("user_prompt"), row.text("type")
    if not kind.endswith((":conflict", ":aligned")):
        row.refuse("type", f"{kind!r} ends neither in ':conflict' nor in ':aligned'")
    given = row.get("gt", (str, dict), "a JSON object")
    try:
        constraint = read_json(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        row.refuse("gt", f"not complete JSON ({explain_json(error)})")
    function = constraint.get("func_name") if isinstance(constraint, dict) else None
    if function not in OFFICIAL:
        row.refuse("gt", f"func_name {function!r} is not a known constraint")
    arguments = {}
    for name in list(inspect.signature(OFFICIAL[function]).parameters)[1:]:
        value = arguments[name] = constraint.get("N" if name == "n" else name)
        if name in NUMBERS:
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        elif name in LISTS:
            fits = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
        else:
            fits = isinstance(value, str) or (name == "options" and isinstance(value, list))
        if not fits or (name == "letter" and len(value) != 1) or (name == "section_splitter" and not value):
            row.refuse("gt", f"{function}: {name} is {json.dumps(value)}")
    messages = ({"role": "system", "content": system}, {"role": "user", "content": user})
    data = {"function": function, "arguments": arguments, "type": kind.rsplit(":", 1)[0]}
    return Pair(row.number, kind.rsplit(":", 1)[1], messages, data, suite)
