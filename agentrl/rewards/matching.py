"""Hard credit (PACT, App. B): each predicted call is matched with one reference call and earns its similarity to it.

Similarity is MatchTIR's. Values are compared as Python compares them, so 1, True and 1.0 are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from agentrl.config.schema import Matching

SINKHORN_STEPS, SINKHORN_TOLERANCE = 1000, 1e-12


def similarity(pred: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """Return the similarity in [0, 1] of two calls {"name", "arguments"}; 0 if the names differ beyond case.

    Otherwise it is (1 + Jaccard(keys) + number of gold arguments given with an equal value) / (2 + number of gold
    arguments). Two calls without arguments have Jaccard 1. Arguments count as none if they are neither a JSON object
    nor a string that holds one.
    """
    if str(pred["name"]).lower() != str(gold["name"]).lower():
        return 0.0
    given, wanted = _arguments(pred), _arguments(gold)
    union = given.keys() | wanted.keys()
    jaccard = len(given.keys() & wanted.keys()) / len(union) if union else 1.0
    equal = sum(key in given and given[key] == value for key, value in wanted.items())
    return float((1 + jaccard + equal) / (2 + len(wanted)))


def match(scores: Sequence[Sequence[float]], method: Matching = "hungarian") -> list[int | None]:
    """Assign predictions (rows) to references (columns) one to one; None for a prediction without a positive match.

    hungarian: maximum total score (the paper). greedy: pairs by descending score, ties by prediction and then reference
    order (MatchTIR's code, which calls this Hungarian).

    Raises:
        ValueError: another method, or rows of different lengths.
    """
    if method not in get_args(Matching):
        raise ValueError(f"unknown matching {method!r}; choose from {', '.join(get_args(Matching))}")
    if len({len(row) for row in scores}) > 1:
        raise ValueError("the rows of the score matrix differ in length; give one score for each reference call")
    assigned: list[int | None] = [None] * len(scores)
    if not scores or not scores[0]:
        return assigned
    if method == "hungarian":
        for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            if scores[row][column] > 0:
                assigned[int(row)] = int(column)
        return assigned
    pairs = sorted((-score, i, j) for i, row in enumerate(scores) for j, score in enumerate(row) if score > 0)
    taken: set[int] = set()
    for _, i, j in pairs:
        if assigned[i] is None and j not in taken:
            assigned[i] = j
            taken.add(j)
    return assigned


def call_rewards(
    pred: Sequence[Mapping[str, Any]],
    gold: Sequence[Mapping[str, Any]],
    method: Matching = "hungarian",
    unmatched_penalty: float = 0.0,
) -> list[float]:
    """Return one reward per predicted call: its similarity if matched, else -unmatched_penalty (lambda_pen >= 0)."""
    if unmatched_penalty < 0:
        raise ValueError(f"unmatched_penalty {unmatched_penalty} must be >= 0, because it is subtracted")
    scores = [[similarity(p, g) for g in gold] for p in pred]
    return [
        -unmatched_penalty if column is None else row[column]
        for row, column in zip(scores, match(scores, method), strict=True)
    ]


def transport_rewards(
    pred: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Any]], reg: float = 0.1
) -> list[float]:
    """Return MatchTIR's soft rewards: one for each predicted call, the row sum of transport plan * similarity.

    The plan minimises -<plan, similarity> - reg * entropy with uniform marginals: each predicted call gives 1/P and
    each reference call takes 1/G. Sinkhorn's iteration finds it. The rewards sum to at most 1; without reference calls
    they are 0.

    Raises:
        ValueError: reg is not above 0.
    """
    if reg <= 0:
        raise ValueError(f"reg {reg} must be above 0")
    if not pred or not gold:
        return [0.0] * len(pred)
    scores = np.array([[similarity(p, g) for g in gold] for p in pred])
    kernel = np.exp((scores - scores.max()) / reg)  # the plan does not depend on this shift
    rows, columns = np.full(len(pred), 1 / len(pred)), np.full(len(gold), 1 / len(gold))
    v = np.ones(len(gold))
    for _ in range(SINKHORN_STEPS):
        u = rows / (kernel @ v)
        v = columns / (kernel.T @ u)
        plan = u[:, None] * kernel * v
        if np.abs(plan.sum(1) - rows).max() < SINKHORN_TOLERANCE:
            break
    return [float(value) for value in (plan * scores).sum(1)]


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):  # the policy may write anything, also text that is not JSON
            return {}
    return arguments if isinstance(arguments, Mapping) else {}
