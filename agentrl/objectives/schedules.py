"""Schedules. Each is a pure function of progress, so a resumed run needs no saved state of a schedule.

The paper's progress is the share of the updates made (`progress`). It names adaptive schedules as an open point: here
the progress of a prompt is its success (`success_progress`) or how well the policy writes its trace (`loss_progress`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from agentrl.core.expert_trace import MAX_LEVEL
from agentrl.objectives.choices import AnnealKind

_SLACK = 1e-9  # a step on a boundary has reached it, even if the division rounds down


def progress(step: int, total_steps: int, horizon: float = 1.0) -> float:
    """Return min(s / S, 1) with S = horizon * total_steps (PACT, eq. 11).

    `step` is s, the number of finished updates, so it starts at 0. Raises ValueError unless step >= 0, total_steps > 0
    and horizon > 0.
    """
    if step < 0 or total_steps <= 0 or horizon <= 0:
        raise ValueError(f"step {step} must be >= 0, total_steps {total_steps} and horizon {horizon} above 0")
    return min(step / (horizon * total_steps), 1.0)


def loss_progress(nll: float) -> float:
    """Return exp(-L), the geometric mean of the probabilities of an expert's tokens, as the progress of a schedule.

    L, the mean negative log-likelihood of the tokens, is L_SFT with equal weights. The progress is near 0 while the
    policy cannot write the trace, and near 1 once it writes the trace by itself. Raises ValueError unless L >= 0.
    """
    if not nll >= 0:
        raise ValueError(f"a mean negative log-likelihood of {nll} must be >= 0")
    return math.exp(-nll)


def success_progress(solved: Sequence[bool]) -> float:
    """Return the share of a prompt's rollouts that solve it, as the progress of a schedule. No rollouts give 0."""
    return sum(solved) / len(solved) if solved else 0.0


def anneal_value(kind: AnnealKind, start: float, end: float, progress: float, num_steps: int = 2) -> float:
    """Return a value that goes from `start` to `end` while `progress` goes from 0 to 1.

    linear    a straight line (PACT, eq. 11)
    constant  `start` throughout
    cosine    half a cosine, flat at both ends
    steps     `num_steps` plateaus of equal length, with equally spaced values from `start` to `end`
    Raises ValueError on an unknown kind, on progress outside [0, 1] and on fewer than 2 plateaus.
    """
    if kind not in get_args(AnnealKind):
        raise ValueError(f"unknown anneal kind {kind!r}; choose from {', '.join(get_args(AnnealKind))}")
    _check_progress(progress)
    if kind == "constant":
        return start
    if kind == "linear":
        share = progress
    elif kind == "cosine":
        share = (1 - math.cos(math.pi * progress)) / 2
    else:
        if num_steps < 2:
            raise ValueError(f"kind 'steps' needs num_steps >= 2, not {num_steps}")
        share = min(math.floor(progress * num_steps + _SLACK), num_steps - 1) / (num_steps - 1)
    return start * (1 - share) + end * share  # exact at both ends


def warmup_cosine(step: int, peak: float, valley: float, warmup_steps: int, decay_steps: int) -> float:
    """Return CHORD's mu after `step` finished updates: a line from 0 to `peak`, half a cosine to `valley`, constant.

    Without warm-up, the first update has `peak`. Without decay, mu is `valley` right after the warm-up.
    Raises ValueError on a negative number of steps.
    """
    if min(step, warmup_steps, decay_steps) < 0:
        raise ValueError(f"step {step}, warmup_steps {warmup_steps} and decay_steps {decay_steps} must be >= 0")
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = step - warmup_steps
    return anneal_value("cosine", peak, valley, done / decay_steps) if done < decay_steps else valley


def reasoning_level(progress: float, switch_points: Sequence[float]) -> int:
    """Return the level of reasoning in L_SFT, from L4 down to L0: the number of switch points not reached yet.

    Raises ValueError unless there are exactly four ascending points and progress lies in [0, 1].
    """
    _check_progress(progress)
    if len(switch_points) != MAX_LEVEL or list(switch_points) != sorted(switch_points):
        raise ValueError(f"switch_points {list(switch_points)} must be {MAX_LEVEL} ascending fractions")
    return sum(progress < point - _SLACK for point in switch_points)


def _check_progress(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"progress {value} is not in [0, 1]")
