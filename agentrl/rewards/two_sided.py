"""The two rewards of a reply, (r_user, r_sys): by the bench's program where it can tell, else by the judge."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.benches.base import Task
from agentrl.benches.hif.base import HifBench, answer_of
from agentrl.errors import UserError
from agentrl.judges.base import Judge, JudgeRequest

Rewards = dict[str, float | None]  # {"user": r_user, "sys": r_sys} in [0, 1]; None is missing and never 0
SIDES = {"sys": "system", "user": "user"}  # reward -> what the judge holds the reply against


def grade(bench: HifBench, judge: Judge | None, tasks: Sequence[Task], responses: Sequence[str]) -> list[Rewards]:
    """Rewards of every response to its task. What the program leaves open is put to the judge, all at once.

    The two questions about a reply are separate requests: neither names the other side's prompt.

    Raises:
        UserError: the program leaves a reward open and there is no judge.
        JudgeStopped: the judge cannot go on; its verdicts so far are in its cache.
    """
    graded = [bench.rewards(task, response) for task, response in zip(tasks, responses, strict=True)]
    opened = [(row, reward) for row, rewards in enumerate(graded) for reward in SIDES if rewards[reward] is None]
    if not opened:
        return graded
    if judge is None:
        raise UserError(
            f"bench={bench.name}: no program can tell r_{opened[0][1]} of {tasks[opened[0][0]].id}; choose a judge, "
            "e.g. judge=openai judge.base_url=... judge.model=..."
        )
    verdicts = judge.score(
        [
            JudgeRequest(SIDES[reward], tasks[row].data[SIDES[reward]], answer_of(responses[row]))
            for row, reward in opened
        ]
    )
    for (row, reward), verdict in zip(opened, verdicts, strict=True):
        graded[row][reward] = verdict.score
    return graded
