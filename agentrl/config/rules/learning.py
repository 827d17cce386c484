"""Is there anything to learn from? There must be groups to compare, a loss with terms, and schedules that fall."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.sides import Dpo, Hipo, SysOnly, UserOnly
from agentrl.config.checks import require
from agentrl.config.constraints import Constraint, EpisodeConstraint
from agentrl.config.schema import Anneal, Config, Dual


def check_learning(config: Config) -> None:
    """Raise UserError if an algorithm would learn nothing, or the opposite of what is meant."""
    algo, k = config.algo, config.rollout.num_generations
    _anneal(config.anneal)
    _dual(config.dual)
    if isinstance(algo, Evaluate):
        evaluates = "algo=eval does nothing without its evaluation; set true"
        require(config.eval.after, "eval.after", config.eval.after, evaluates)
        require(not config.eval.before, "eval.before", config.eval.before, "algo=eval evaluates once; set false")
    if isinstance(algo, Dpo) and algo.pairs is None:
        require(k >= 2, "rollout.num_generations", k, "a pair needs two replies to one prompt; set 2 or more")
        processes = config.hardware.processes
        alone = "only one process can sample pairs; sample them with 1, then set algo.pairs to that run's pairs.jsonl"
        require(processes == 1, "hardware.processes", processes, alone)
    if algo.rollouts:
        group_rule = "advantages compare the rollouts of a prompt; set 2 or more (the paper: 8)"
        require(k >= 2, "rollout.num_generations", k, group_rule)
    algo.check_keys()
    if "constraints" in type(algo).model_fields:
        _multipliers(algo.constraints, config.dual)
    if isinstance(algo, Hipo):
        _weights(algo, config.dual)
    _diagnosis(config)


def _diagnosis(config: Config) -> None:
    every, algo = config.trainer.diagnose, config.algo
    traced = algo.rollouts and "traces" in algo.reads
    method_rule = f"algo={algo.name} reads no expert traces beside rollouts; set 0, or algo=pact, chord, ..."
    require(every == 0 or traced, "trainer.diagnose", every, method_rule)
    whole_rule = "needs whole weights in each process; set 0, or hardware.accelerate_config=null"
    require(every == 0 or config.hardware.accelerate_config is None, "trainer.diagnose", every, whole_rule)


def _anneal(anneal: Anneal) -> None:
    start_rule = f"must be at least anneal.end={anneal.end}: the weight of tool calls can only fall; swap the two"
    require(anneal.start >= anneal.end, "anneal.start", anneal.start, start_rule)
    require(anneal.kind != "steps" or anneal.num_steps >= 2, "anneal.num_steps", anneal.num_steps, "must be 2 or more")


def _dual(dual: Dual) -> None:
    grows = dual.kind != "log" or dual.initial > 0
    require(grows, "dual.initial", dual.initial, "dual=log multiplies lambda, so 0 would stay 0; set it above 0")


def _multipliers(constraints: Sequence[Constraint | EpisodeConstraint], dual: Dual) -> None:
    names = [constraint.name for constraint in constraints]
    require(len(set(names)) == len(names), "algo.constraints", names, "two constraints share a name; rename one")
    _initial(constraints, dual, dual.cap, f"must lie in [0, dual.cap={dual.cap:g}]")


def _initial(constraints: Sequence[Constraint | EpisodeConstraint], dual: Dual, largest: float, rule: str) -> None:
    """Refuse a multiplier that begins above `largest`, by the name of the key that sets it."""
    for index, one in enumerate(constraints):
        key = "dual.initial" if one.initial == dual.initial else f"algo.constraints.{index}.initial"
        require(one.initial <= largest, key, one.initial, rule)


def _weights(algo: Hipo, dual: Dual) -> None:
    moves_rule = f"algo={algo.name} keeps its multipliers; set fixed, or choose algo=hipo"
    require(algo.multipliers_move or dual.kind == "fixed", "dual.kind", dual.kind, moves_rule)
    if isinstance(algo, SysOnly):
        one_side = "algo=sys_only learns from the constraints alone; set 0, or choose algo=fixed_lambda"
        require(algo.user_weight == 0, "algo.user_weight", algo.user_weight, one_side)
    if isinstance(algo, UserOnly):
        one_side = "algo=user_only learns from r_user alone; set 0, or choose algo=fixed_lambda"
        _initial(algo.constraints, dual, 0.0, one_side)
    idle = all(dual.kind == "fixed" and one.initial == 0 for one in algo.constraints)  # also if there are none
    idle_rule = "leaves nothing to learn from; raise it, or add a constraint"
    require(algo.user_weight != 0 or not idle, "algo.user_weight", algo.user_weight, idle_rule)
