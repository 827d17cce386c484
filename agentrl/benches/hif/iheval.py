"""IHEval (arXiv 2502.08745), read from the user's own copy. Its licence (CC BY-NC-ND) forbids to ship or change it.


Rows are aligned, conflicting or reference rows; in a reference row one user message has all instructions. The two tasks
with tools (get-webpage, slack-user) are left out. Conflicting rows are scored by the system's instruction alone. So
r_user is the score if both sides want the same (aligned, reference), and 0 in a conflict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.benches.hif.base import Pair, SingleTurn, answer_of
from agentrl.benches.hif.files import Row, rows_of
from agentrl.benches.hif.iheval_rules import TASKS
from agentrl.benches.hif.sys_ifeval import arguments_of
from agentrl.config.benches import IHEval
from agentrl.core.bench import Task
from agentrl.core.errors import UserError

SETTINGS = ("reference", "aligned", "conflict")
RULE_FOLLOWING = ("single-turn", "multi-turn")


class IHEvalBench(SingleTurn):
    """The bench; see the module docstring."""

    name = "iheval"
    solve_metric = "score"

    def __init__(self, config: IHEval) -> None:
        super().__init__(config.test_fraction, config.data_seed)
        self.config = config

    def load(self) -> list[Pair]:
        root = Path(self.config.path).expanduser()
        pairs = []
        for file in sorted(root.glob("**/input_data.json")):
            parts = file.relative_to(root).parts
            task = next((part for part in parts if part in TASKS), None)
            setting = next((part for part in parts if part in SETTINGS), None)
            if task and setting:
                pairs += [pair_of(row, task, setting, "/".join(parts[:-1])) for row in rows_of(file)]
        if not pairs:
            raise UserError(
                f"bench.path: {root} has no <task>/<setting>/.../input_data.json; give IHEval's directory benchmark/"
            )
        return pairs

    def groups(self, task: Task) -> dict[str, str]:
        return {"kind": task.data["kind"], "suite": task.data["task"], "setting": task.data["suite"]}

    def metrics(self, task: Task, response: str) -> dict[str, float]:
        """Return the metrics. `score` is the mean of strict and loose, if both exist. Reference rows have no r_sys."""
        scores = TASKS[task.data["task"]](task.data["answer"], answer_of(response))
        score = sum(scores.values()) / len(scores)
        system = {} if task.data["kind"] == "reference" else {"r_sys": score, "violation": float(score < 1)}
        return {**system, "score": score, **scores}

    def rewards(self, task: Task, response: str) -> dict[str, float | None]:
        """Return both rewards. An empty reply earns 0."""
        answer = answer_of(response)
        score = TASKS[task.data["task"]](task.data["answer"], answer)["strict"] if answer else 0.0
        return {"user": 0.0 if task.data["kind"] == "conflict" else score, "sys": score}

    def transcript(self, task: Task, response: str) -> dict[str, Any]:
        return TASKS[task.data["task"]](task.data["answer"], response.strip())


def pair_of(row: Row, task: str, setting: str, suite: str) -> Pair:
    """Check one row and return it."""
    messages = [{"role": "system", "content": row.text("system")}] if "system" in row.content else []
    if "conversation_history" in row.content:
        said = row.get("conversation_history", list, "a list of texts")
        if len(said) % 2 or not all(isinstance(text, str) for text in said):
            row.refuse("conversation_history", "expected texts of user and assistant in turn")
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    messages.append({"role": "user", "content": row.get("instruction", str, "text")})
    return Pair(row.number, setting, tuple(messages), {"task": task, "answer": answer_in(row, task)}, suite)


def answer_in(row: Row, task: str) -> Any:
    """Return the row's `answer`, in the form that the scorer of its task reads."""
    if task in RULE_FOLLOWING:
        answer = row.get("answer", dict, "an object")
        ids, kwargs = answer.get("instruction_id_list"), answer.get("kwargs")
        if not isinstance(ids, list) or not isinstance(kwargs, list) or not ids or len(ids) != len(kwargs):
            row.refuse("answer", "expected as many kwargs as instruction ids")
        arguments = [arguments_of(row, name, given) for name, given in zip(ids, kwargs, strict=True)]
        return {"instruction_id_list": ids, "kwargs": arguments}
    if TASKS[task] is TASKS["user-prompt-hijack"]:
        answer = row.get("answer", dict, "an object")
        if not isinstance(answer.get("access_code"), str) or answer.get("label") not in (0, 1):
            row.refuse("answer", "expected access_code and label (0 or 1)")
        return answer
    answer = row.get("answer", (str, list), "text") if task == "lang-detect" else row.text("answer")
    if isinstance(answer, list) and not all(isinstance(name, str) for name in answer):
        row.refuse("answer", "expected names of languages")
    return answer
