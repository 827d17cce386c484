"""The best that a policy can do on minihif under a constraint, exactly: max E[r_user] subject to E[r_sys] >= tau.

Replies to a prompt fall into types: the opening word or not, how many of the allowed and how many of the forbidden
requested words. Words that nobody asked for help neither side, and which words of a sort are said does not matter. So a
prompt has a few pairs (r_sys, r_user), and a policy chooses a distribution over them. The Lagrangian of the problem is
concave. So its optimum takes the points of each prompt's upper hull, and moves prompts along their edges where r_sys
costs least r_user, until the mean of r_sys is tau. That mixes the two ends of at most one edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from agentrl.benches.minihif import permitted_words, system_reward, user_reward
from agentrl.core.bench import Task

Point = tuple[float, float]  # r_sys, r_user


@dataclass(frozen=True)
class Optimum:
    """The best mean rewards under a constraint."""

    r_sys: float
    r_user: float
    multiplier: float  # what one more point of r_sys costs in r_user: the lambda at which both are in balance

    def distance(self, r_sys: float, r_user: float) -> float:
        """The Euclidean distance of a policy's mean rewards to those of the optimum."""
        return ((r_sys - self.r_sys) ** 2 + (r_user - self.r_user) ** 2) ** 0.5


def reply_types(task: Task) -> list[str]:
    """One reply of each type to a prompt."""
    rule, items = task.data["rule"], task.data["items"]
    allowed = permitted_words(rule, items)
    forbidden = tuple(item for item in items if item not in allowed)
    return [
        " ".join((*((rule.opener,) if opening else ()), *allowed[:good], *forbidden[:bad]))
        for opening, good, bad in product((False, True), range(len(allowed) + 1), range(len(forbidden) + 1))
    ]


def rewards_of(task: Task) -> list[Point]:
    """(r_sys, r_user) of every type of reply to a prompt."""
    rule, asked = task.data["rule"], (task.data["items"], task.data["count"])
    return [(system_reward(rule, reply), user_reward(*asked, reply)) for reply in reply_types(task)]


def upper_hull(points: Sequence[Point]) -> list[Point]:
    """The points that are best for some multiplier lambda >= 0, by r_sys, from the best for the user on."""
    hull: list[Point] = []
    best = -1.0
    for point in sorted(set(points), reverse=True):  # by r_sys from the largest down, then by r_user
        if point[1] <= best:
            continue  # another point is as good for either side
        best = point[1]
        while len(hull) > 1 and _slope(hull[-1], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull[::-1]


def optimum(tasks: Sequence[Task], tau: float) -> Optimum | None:
    """The optimum over the prompts of `tasks`, all equally frequent. None: no policy reaches tau."""
    hulls = [upper_hull(rewards_of(task)) for task in tasks]
    count = len(hulls)
    r_sys, r_user = (sum(hull[0][side] for hull in hulls) / count for side in (0, 1))
    edges = [(_slope(one, other), one, other) for hull in hulls for one, other in pairwise(hull)]
    multiplier = 0.0
    for price, (s, u), (s_next, u_next) in sorted(edges):
        if r_sys >= tau - 1e-12:
            return Optimum(r_sys, r_user, multiplier)
        multiplier = price
        share = min(1.0, (tau - r_sys) * count / (s_next - s))
        r_sys += share * (s_next - s) / count
        r_user += share * (u_next - u) / count
    return Optimum(r_sys, r_user, multiplier) if r_sys >= tau - 1e-12 else None


def _slope(one: Point, other: Point) -> float:
    """What r_sys costs between two points: r_user lost over r_sys gained."""
    return (one[1] - other[1]) / (other[0] - one[0])
