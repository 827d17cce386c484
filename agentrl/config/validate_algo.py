"""What the keys of an algorithm may hold, and what each algorithm asks of the rest of the configuration."""

from __future__ import annotations

import math

from agentrl.config.algos import Pact, Sft
from agentrl.config.checks import require
from agentrl.config.schema import Config
from agentrl.traces.records import TRACE_PARTS

ALGO_CHOICES: dict[str, tuple[str, ...]] = {
    "algo.advantage.kind": ("hard_credit", "trajectory"),
    "algo.kl_context": ("ratio", "prompt"),
    "algo.loss_aggregation": ("sequence", "token"),
    "algo.trace.rendering": ("message", "turns"),
    "algo.schedule.reasoning": ("segment", "token", "full_token", "fixed", "none"),
    "algo.schedule.call": ("scale", "token", "fixed", "none"),
}
SFT_COMPONENTS = ("reasoning", "tool_call", "answer")


def validate_algo(config: Config) -> None:
    algo = config.algo
    if isinstance(algo, Sft):
        require(len(algo.components) > 0, "algo.components", algo.components, "name at least one component")
        for part in algo.components:
            require(part in SFT_COMPONENTS, "algo.components", part, f"choose from {', '.join(SFT_COMPONENTS)}")
        return
    k = config.rollout.num_generations
    group_rule = "advantages compare rollouts of one prompt; set 2 or more (the paper: 8)"
    require(k >= 2, "rollout.num_generations", k, group_rule)
    for key in ("kl_coef", "entropy_coef"):
        require(0 <= getattr(algo, key) < math.inf, f"algo.{key}", getattr(algo, key), "must be 0 or more")
    require(0 < algo.clip_eps < 1, "algo.clip_eps", algo.clip_eps, "must lie in (0, 1)")
    advantage = algo.advantage
    require(0 <= advantage.gamma <= 1, "algo.advantage.gamma", advantage.gamma, "must lie in [0, 1]")
    require(0 < advantage.scale < math.inf, "algo.advantage.scale", advantage.scale, "must be above 0")
    require(0 < advantage.eps < math.inf, "algo.advantage.eps", advantage.eps, "must be above 0")
    if isinstance(algo, Pact):
        _pact(algo)


def _pact(algo: Pact) -> None:
    require(0 <= algo.q <= 1, "algo.q", algo.q, "a probability: must lie in [0, 1] (the paper: 0.4)")
    for key in ("rl_coef", "sft_coef"):
        require(0 <= getattr(algo, key) < math.inf, f"algo.{key}", getattr(algo, key), "must be 0 or more")
    idle = algo.rl_coef == 0 and (algo.sft_coef == 0 or algo.q == 1)
    require(not idle, "algo.rl_coef", algo.rl_coef, "nothing is left to train on; raise it, or sft_coef with q below 1")
    points = algo.schedule.switch_points
    ascending = len(points) == 4 and all(0 <= p <= 1 for p in points) and points == sorted(points)
    points_rule = "four ascending fractions in [0, 1], one per drop L4>L3>L2>L1>L0"
    require(ascending, "algo.schedule.switch_points", points, points_rule)
    require(algo.trace.max_tokens >= 1, "algo.trace.max_tokens", algo.trace.max_tokens, "must be at least 1")
    for part in algo.trace.drop:
        require(part in TRACE_PARTS, "algo.trace.drop", part, f"choose from {', '.join(TRACE_PARTS)}")
