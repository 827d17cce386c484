"""Is there anything to learn from? Groups to compare, a loss that is not empty, schedules that go the right way."""

from __future__ import annotations

from agentrl.config.algos import Chord, Dpo, Evaluate, Hipo, Pact
from agentrl.config.checks import require
from agentrl.config.schema import Anneal, Config, Dual


def check_learning(config: Config) -> None:
    """Raise UserError where an algorithm would learn nothing, or the opposite of what is meant."""
    algo, k = config.algo, config.rollout.num_generations
    _anneal(config.anneal)
    _dual(config.dual)
    if isinstance(algo, Evaluate):
        evaluates = "algo=eval evaluates and does nothing else; set true"
        require(config.eval.after, "eval.after", config.eval.after, evaluates)
        require(not config.eval.before, "eval.before", config.eval.before, "algo=eval evaluates once; set false")
    if isinstance(algo, Dpo) and algo.pairs is None:
        require(k >= 2, "rollout.num_generations", k, "a pair is two replies to one prompt; set 2 or more")
        processes = config.hardware.processes
        alone = "pairs are sampled by one process; sample them in a run of one, and give its pairs.jsonl as algo.pairs"
        require(processes == 1, "hardware.processes", processes, alone)
    if algo.rollouts:
        group_rule = "advantages compare rollouts of one prompt; set 2 or more (the paper: 8)"
        require(k >= 2, "rollout.num_generations", k, group_rule)
    if isinstance(algo, Chord):
        falls = f"must be at most algo.mu.peak={algo.mu.peak:g}: mu only falls once it is warm; swap the two"
        require(algo.mu.valley <= algo.mu.peak, "algo.mu.valley", algo.mu.valley, falls)
    if isinstance(algo, Pact):
        idle = algo.rl_coef == 0 and (algo.sft_coef == 0 or algo.q == 1)
        idle_rule = "nothing is left to train on; raise it, or sft_coef with q below 1"
        require(not idle, "algo.rl_coef", algo.rl_coef, idle_rule)
    if isinstance(algo, Hipo):
        _constraints(algo, config.dual)


def _anneal(anneal: Anneal) -> None:
    start_rule = f"must be at least anneal.end={anneal.end}: the tool-call scale only falls; swap the two"
    require(anneal.start >= anneal.end, "anneal.start", anneal.start, start_rule)
    require(anneal.kind != "steps" or anneal.num_steps >= 2, "anneal.num_steps", anneal.num_steps, "must be 2 or more")


def _dual(dual: Dual) -> None:
    grows = dual.kind != "log" or dual.initial > 0
    require(grows, "dual.initial", dual.initial, "dual=log multiplies, and 0 stays 0; start above 0")


def _constraints(algo: Hipo, dual: Dual) -> None:
    names = [constraint.name for constraint in algo.constraints]
    require(len(set(names)) == len(names), "algo.constraints", names, "two constraints share a name; rename one")
    initial_rule = f"must lie in [0, dual.cap={dual.cap:g}]"
    for index, one in enumerate(algo.constraints):
        require(one.initial <= dual.cap, f"algo.constraints.{index}.initial", one.initial, initial_rule)
    idle = all(dual.kind == "fixed" and one.initial == 0 for one in algo.constraints)  # of none, too
    idle_rule = "nothing is left to learn from; give a constraint, or raise it"
    require(algo.user_weight != 0 or not idle, "algo.user_weight", algo.user_weight, idle_rule)
