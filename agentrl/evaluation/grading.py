"""The two rewards of a reply, (r_user, r_sys): by the bench's program where it can tell, else by the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.benches.hif.base import answer_of, response_of
from agentrl.benches.hif.proxy import user_proxy
from agentrl.core.bench import Bench, Score, Task, TwoSided
from agentrl.core.errors import UserError
from agentrl.core.judge import Judge, JudgeRequest
from agentrl.core.trajectory import Trajectory

# {"user": r_user, "sys": r_sys} in [0, 1]; None is missing and never 0. Where a stand-in takes the user's place, "user"
# is its value, and so is "user_proxy".
Rewards = dict[str, float | None]
SIDES = {"sys": "system", "user": "user"}  # reward -> what the judge holds the reply against
REWARD_NAMES = ("r_user", "user_proxy", "r_sys")  # in logs


def grade_episodes(
    bench: TwoSided, judge: Judge | None, tasks: Sequence[Task], trajectories: Sequence[Trajectory]
) -> list[Rewards]:
    """Both rewards of every episode. What the bench leaves open is put to the judge, all at once.

    The two questions about a reply are separate requests: neither names the other side's prompt. Without a judge a
    word-overlap stand-in takes the user's place (`user_proxy`, and is marked so); nothing can take the system's. Where
    the token budget ended a reply inside its think block, both rewards are missing.

    Raises:
        UserError: the bench leaves r_sys open and there is no judge.
        JudgeStopped: the judge cannot go on; its verdicts so far are in its cache.
    """
    given = [bench.reward(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]
    opened = [(row, side) for row, own in enumerate(given) for side in SIDES if side in own and own[side] is None]
    graded: list[Rewards] = [{side: own.get(side) for side in ("user", "sys")} for own in given]
    answers = {row: answer_of(response_of(trajectories[row])) for row, _ in opened}
    if judge is None:
        for row, side in opened:
            if side == "sys":
                raise UserError(
                    f"bench={bench.name}: no program can tell r_sys of {tasks[row].id}; choose one, e.g. judge=openai"
                )
            proxy = user_proxy(tasks[row].data["user"], answers[row])
            graded[row] |= {"user": proxy, "user_proxy": proxy}
        return graded
    requests = [JudgeRequest(SIDES[side], tasks[row].data[SIDES[side]], answers[row]) for row, side in opened]
    for (row, side), verdict in zip(opened, judge.score(requests) if requests else [], strict=True):
        graded[row][side] = verdict.score
    return graded


def rewards_to_log(rewards: Rewards) -> Rewards:
    """Both rewards by the names that logs give them: r_user is never a stand-in."""
    user = "user_proxy" if "user_proxy" in rewards else "r_user"
    return {user: rewards["user"], "r_sys": rewards["sys"]}


class MissingVerdicts:
    """How many verdicts on a reward did not come, over a run; says so at the first, and when twice as many batches
    lacked some as at the time before.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._missing = self._asked = self._batches = 0

    def add(self, missing: int, asked: int) -> str | None:
        """Count a batch; what a person should read of it, if anything."""
        self._missing, self._asked = self._missing + missing, self._asked + asked
        if missing == 0:
            return None
        self._batches += 1
        if self._batches & (self._batches - 1):
            return None
        return missing_text(self._name, self._missing, self._asked)


def missing_text(name: str, missing: int, asked: int) -> str:
    """That verdicts are missing, and what follows."""
    return (
        f"{missing} of {asked} replies have no {name} ({missing / asked:.0%}): the judge's verdict could not be "
        "read, or the reply was cut inside its think block; they are left out of means, and teach nothing by it"
    )


def scores(bench: Bench, judge: Judge | None, tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[Score]:
    """The bench's own metrics of finished episodes, with r_sys and r_user beside them where a judge gives them.

    A missing verdict is None: whoever takes a mean leaves it out.
    """
    own = [bench.score(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]
    if judge is None or not isinstance(bench, TwoSided):
        return own
    graded = grade_episodes(bench, judge, tasks, trajectories)
    joined = []
    for score, rewards in zip(own, graded, strict=True):
        judged: dict[str, Any] = {"r_sys": rewards["sys"], "r_user": rewards["user"]}
        joined.append(
            Score({**judged, **score.metrics}, score.cluster, score.groups)
        )  # the suite's own rules come first
    return joined
