"""Grade a reply by its two rewards, (r_user, r_sys): by the bench's program if it can tell, else by the judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrl.benches.hif.base import answer_of, is_cut_in_thought, response_of
from agentrl.benches.hif.proxy import user_proxy
from agentrl.core.bench import Bench, Classified, Score, Task, TwoSided
from agentrl.core.errors import UserError
from agentrl.core.judge import Judge, JudgeRequest, Verdict
from agentrl.core.trajectory import Trajectory

# {"user": r_user, "sys": r_sys} in [0, 1]; None means missing, never 0. If word overlap stands in for r_user, its value
# is in both "user" and "user_proxy".
Rewards = dict[str, float | None]
SIDES = {"sys": "system", "user": "user"}  # reward -> the text that the judge compares the reply with
REWARD_NAMES = ("r_user", "user_proxy", "r_sys")  # in logs


def grade_episodes(
    bench: TwoSided, judge: Judge | None, tasks: Sequence[Task], trajectories: Sequence[Trajectory]
) -> list[Rewards]:
    """Return both rewards of every episode. The judge gets all replies that the bench does not grade, in one batch.

    The two questions about a reply are separate requests: neither shows the other side's prompt. Without a judge, word
    overlap with the request stands in for r_user (marked as `user_proxy`); nothing stands in for r_sys. If the token
    budget ended a reply inside its think block, both rewards are missing.

    Raises:
        UserError: the bench does not grade r_sys and there is no judge.
        JudgeStopped: the judge cannot continue; its verdicts so far are in its cache.
    """
    given = [bench.reward(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]
    opened = [(row, side) for row, own in enumerate(given) for side in SIDES if side in own and own[side] is None]
    graded: list[Rewards] = [{side: own.get(side) for side in ("user", "sys")} for own in given]
    answers = {row: answer_of(response_of(trajectories[row])) for row, _ in opened}
    if judge is None:
        for row, side in opened:
            if side == "sys":
                raise UserError(
                    f"bench={bench.name}: no program can grade r_sys of {tasks[row].id}; choose a judge, e.g. "
                    "judge=openai"
                )
            proxy = user_proxy(tasks[row].data["user"], answers[row])
            graded[row] |= {"user": proxy, "user_proxy": proxy}
        return graded
    requests = [JudgeRequest(SIDES[side], tasks[row].data[SIDES[side]], answers[row]) for row, side in opened]
    for (row, side), verdict in zip(opened, judge.score(requests) if requests else [], strict=True):
        graded[row][side] = verdict.score
    return graded


def rewards_to_log(rewards: Rewards) -> Rewards:
    """Return both rewards under the names that logs use. A stand-in is never called r_user."""
    user = "user_proxy" if "user_proxy" in rewards else "r_user"
    return {user: rewards["user"], "r_sys": rewards["sys"]}


class MissingVerdicts:
    """Counts the verdicts on a reward that did not come during a run.

    It reports the first missing verdict, and again whenever twice as many batches as at the last report lacked some.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._missing = self._asked = self._batches = 0

    def add(self, missing: int, asked: int) -> str | None:
        """Count a batch; return a text for the user if it is time to report."""
        self._missing, self._asked = self._missing + missing, self._asked + asked
        if missing == 0:
            return None
        self._batches += 1
        if self._batches & (self._batches - 1):
            return None
        return missing_text(self._name, self._missing, self._asked)


def missing_text(name: str, missing: int, asked: int) -> str:
    """Return a text that says how many verdicts are missing, and what follows from it."""
    return (
        f"{missing} of {asked} replies have no {name} ({missing / asked:.0%}): the judge's verdict could not be "
        "read, or the reply was cut inside its think block; means and the loss leave them out"
    )


def score_episodes(
    bench: Bench, judge: Judge | None, tasks: Sequence[Task], trajectories: Sequence[Trajectory]
) -> list[Score]:
    """Return the bench's own metrics of finished episodes, with r_sys and r_user beside them if a judge gives them.

    A missing verdict is None, and every mean leaves it out.
    """
    own = [bench.score(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]
    if isinstance(bench, Classified):
        return _classify_episodes(bench, judge, tasks, trajectories, own)
    if judge is None or not isinstance(bench, TwoSided):
        return own
    graded = grade_episodes(bench, judge, tasks, trajectories)
    joined = []
    for score, rewards in zip(own, graded, strict=True):
        judged: dict[str, Any] = {"r_sys": rewards["sys"], "r_user": rewards["user"]}
        joined.append(
            Score({**judged, **score.metrics}, score.cluster, score.groups)
        )  # the suite's own rules take precedence
    return joined


def _classify_episodes(
    bench: Classified, judge: Judge | None, tasks: Sequence[Task], trajectories: Sequence[Trajectory], own: list[Score]
) -> list[Score]:
    """Return the scores with what the classifier says. All metrics of a reply that was cut in its thoughts are None."""
    whole = [row for row, trajectory in enumerate(trajectories) if not is_cut_in_thought(trajectory)]
    pairs = [(tasks[row], answer_of(response_of(trajectories[row]))) for row in whole]
    metrics = dict(zip(whole, classify(bench, judge, pairs), strict=True))
    unseen = None if judge is None else Verdict(None, "the reply was cut inside its think block")
    for row in set(range(len(tasks))) - set(whole):
        metrics[row] = dict.fromkeys(bench.classified(tasks[row], "", unseen))
    return [Score(metrics[row], score.cluster, score.groups) for row, score in enumerate(own)]


def classify(
    bench: Classified, judge: Judge | None, replies: Sequence[tuple[Task, str]]
) -> list[Mapping[str, float | None]]:
    """Return the metrics of replies without their think blocks. The classifier gets all in one batch.

    Without a judge, no model is asked.

    Raises:
        JudgeStopped: the judge cannot continue; its verdicts so far are in its cache.
    """
    requests = [None if judge is None else bench.request(task, answer) for task, answer in replies]
    asked = [request for request in requests if request is not None]
    verdicts: Iterator[Verdict] = iter(judge.score(asked) if judge is not None and asked else [])
    return [
        bench.classified(task, answer, None if request is None else next(verdicts))
        for (task, answer), request in zip(replies, requests, strict=True)
    ]
