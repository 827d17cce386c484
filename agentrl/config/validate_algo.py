"""What the keys of an algorithm may hold, and what each algorithm asks of the rest of the configuration."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.config.algos import Chord, CustomAlgo, Dpo, Evaluate, FocalLora, Hipo, Luffy, Pact, Sft, SplitSoftmax
from agentrl.config.checks import python_file, require
from agentrl.config.schema import Config, Dual
from agentrl.core.expert_trace import TRACE_PARTS

ALGO_CHOICES: dict[str, tuple[str, ...]] = {
    "dual.kind": ("sgd", "adam", "pid", "log", "fixed"),
    "dual.on_infeasible": ("warn", "stop"),
    "algo.importance_level": ("sequence", "sequence_mean", "token"),
    "algo.reference": ("copy", "4bit"),
    "algo.endpoint.history": ("structured", "text"),
    "algo.advantage.kind": ("hard_credit", "trajectory"),
    "algo.kl_context": ("ratio", "prompt"),
    "algo.sft_norm": ("weights", "tokens"),
    "algo.loss_aggregation": ("sequence", "token"),
    "algo.token_weight": ("uniform", "phi"),
    "algo.trace.rendering": ("message", "turns"),
    "algo.schedule.reasoning": ("segment", "token", "full_token", "fixed", "none"),
    "algo.schedule.call": ("scale", "token", "fixed", "none"),
}
SFT_COMPONENTS = ("reasoning", "tool_call", "answer")


def validate_algo(config: Config) -> None:
    algo = config.algo
    _dual(config.dual)
    if isinstance(algo, Sft):
        require(len(algo.components) > 0, "algo.components", algo.components, "name at least one component")
        for part in algo.components:
            require(part in SFT_COMPONENTS, "algo.components", part, f"choose from {', '.join(SFT_COMPONENTS)}")
        return
    if isinstance(algo, Evaluate):
        _evaluate(config, algo)
        return
    if isinstance(algo, SplitSoftmax):
        require(0 < algo.k <= 1, "algo.k", algo.k, "must lie in (0, 1]; 1 changes nothing, smaller looks harder")
        return
    if isinstance(algo, FocalLora):
        require(0 < algo.head_share <= 1, "algo.head_share", algo.head_share, "must lie in (0, 1]")
        for key in ("probe_prompts", "onset_tokens"):
            require(getattr(algo, key) >= 1, f"algo.{key}", getattr(algo, key), "must be at least 1")
        return
    if isinstance(algo, Dpo):
        _dpo(config, algo)
        return
    k = config.rollout.num_generations
    group_rule = "advantages compare rollouts of one prompt; set 2 or more (the paper: 8)"
    require(k >= 2, "rollout.num_generations", k, group_rule)
    for key in ("kl_coef", "entropy_coef"):
        require(0 <= getattr(algo, key) < math.inf, f"algo.{key}", getattr(algo, key), "must be 0 or more")
    if isinstance(algo, Luffy):
        require(0 < algo.shaping < math.inf, "algo.shaping", algo.shaping, "must be above 0 (the paper: 0.1)")
        return
    require(0 < algo.clip_eps < 1, "algo.clip_eps", algo.clip_eps, "must lie in (0, 1)")
    if isinstance(algo, Hipo):
        _hipo(config, algo)
        return
    advantage = algo.advantage
    require(0 <= advantage.gamma <= 1, "algo.advantage.gamma", advantage.gamma, "must lie in [0, 1]")
    require(0 < advantage.scale < math.inf, "algo.advantage.scale", advantage.scale, "must be above 0")
    require(0 < advantage.eps < math.inf, "algo.advantage.eps", advantage.eps, "must be above 0")
    if isinstance(algo, CustomAlgo):
        python_file("algo.path", algo.path)
    if isinstance(algo, Chord):
        _chord(algo)
    if isinstance(algo, Pact):
        _pact(algo)


def _hipo(config: Config, algo: Hipo) -> None:
    require(0 <= algo.user_weight < math.inf, "algo.user_weight", algo.user_weight, "must be 0 or more")
    require(0 < algo.advantage_eps < math.inf, "algo.advantage_eps", algo.advantage_eps, "must be above 0")
    require(
        0 <= algo.tau <= 1, "algo.tau", algo.tau, "rewards lie in [0, 1], and so must the threshold (the paper: 0.7)"
    )
    require(algo.min_tokens >= 0, "algo.min_tokens", algo.min_tokens, "must be 0 or more")
    require(
        0 <= algo.max_repetition <= 1, "algo.max_repetition", algo.max_repetition, "must lie in [0, 1]; 1 keeps all"
    )
    names = [constraint.name for constraint in algo.constraints]
    require(len(set(names)) == len(names), "algo.constraints", names, "two constraints share a name; rename one")
    for index, one in enumerate(algo.constraints):
        path = f"algo.constraints.{index}"
        require(one.reward in ("sys", "user"), f"{path}.reward", one.reward, "must be sys or user")
        require(
            one.kind in (None, "conflict", "aligned"), f"{path}.kind", one.kind, "must be conflict, aligned or null"
        )
        require(0 <= one.threshold <= 1, f"{path}.threshold", one.threshold, "must lie in [0, 1], as rewards do")
        initial_rule = f"must lie in [0, dual.cap={config.dual.cap:g}]"
        require(0 <= one.initial <= config.dual.cap, f"{path}.initial", one.initial, initial_rule)
    held = config.dual.kind == "fixed"
    idle = algo.user_weight == 0 and (not names or (held and all(one.initial == 0 for one in algo.constraints)))
    require(
        not idle, "algo.user_weight", algo.user_weight, "nothing is left to learn from; give a constraint, or raise it"
    )
    if algo.reference == "4bit" and algo.kl_coef > 0:
        quantised_rule = "NF4 has kernels for CUDA alone; set algo.reference=copy, or hardware=gpu"
        require(config.hardware.device == "cuda", "algo.reference", algo.reference, quantised_rule)
        found = importlib.util.find_spec("bitsandbytes") is not None
        require(found, "algo.reference", algo.reference, "needs bitsandbytes: pip install bitsandbytes, or set copy")


def _dpo(config: Config, algo: Dpo) -> None:
    require(0 < algo.beta < math.inf, "algo.beta", algo.beta, "must be above 0")
    require(0 <= algo.sys_weight < math.inf, "algo.sys_weight", algo.sys_weight, "must be 0 or more")
    if algo.pairs is not None:
        require(Path(algo.pairs).expanduser().is_file(), "algo.pairs", algo.pairs, "no such file; null samples pairs")
        return
    k, processes = config.rollout.num_generations, config.hardware.processes
    require(k >= 2, "rollout.num_generations", k, "a pair is two replies to one prompt; set 2 or more")
    alone_rule = "pairs are sampled by one process; sample them in a run of one, and give its pairs.jsonl as algo.pairs"
    require(processes == 1, "hardware.processes", processes, alone_rule)


def _dual(dual: Dual) -> None:
    for key in ("initial", "learning_rate", "k_p", "k_d"):
        require(0 <= getattr(dual, key) < math.inf, f"dual.{key}", getattr(dual, key), "must be 0 or more")
    require(0 < dual.cap < math.inf, "dual.cap", dual.cap, "must be above 0 (the paper: 20)")
    for key in ("ema_decay", "beta1", "beta2"):
        require(0 <= getattr(dual, key) < 1, f"dual.{key}", getattr(dual, key), "must lie in [0, 1)")
    require(dual.warmup >= 0, "dual.warmup", dual.warmup, "must be 0 or more")
    require(dual.patience >= 1, "dual.patience", dual.patience, "must be at least 1")
    grows = dual.kind != "log" or dual.initial > 0
    require(grows, "dual.initial", dual.initial, "dual=log multiplies, and 0 stays 0; start above 0")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:  # a port that is no number, half a bracket
        return False


def _evaluate(config: Config, algo: Evaluate) -> None:
    concurrency = algo.endpoint.concurrency
    require(concurrency >= 1, "algo.endpoint.concurrency", concurrency, "must be at least 1")
    require(algo.endpoint.timeout > 0, "algo.endpoint.timeout", algo.endpoint.timeout, "must be above 0")
    require(algo.endpoint.retries >= 0, "algo.endpoint.retries", algo.endpoint.retries, "must be 0 or more")
    url = algo.endpoint.base_url
    web = url is None or _is_web_address(url)
    require(
        web,
        "algo.endpoint.base_url",
        url,
        "must begin with http:// or https:// and name a host, e.g. http://localhost:8000/v1",
    )
    require(config.eval.after, "eval.after", config.eval.after, "algo=eval evaluates and does nothing else; set true")
    require(not config.eval.before, "eval.before", config.eval.before, "algo=eval evaluates once; set false")


def _chord(algo: Chord) -> None:
    for key in ("peak", "valley"):
        require(0 <= getattr(algo.mu, key) <= 1, f"algo.mu.{key}", getattr(algo.mu, key), "must lie in [0, 1]")
    falls = f"must be at most algo.mu.peak={algo.mu.peak:g}: mu only falls once it is warm; swap the two"
    require(algo.mu.valley <= algo.mu.peak, "algo.mu.valley", algo.mu.valley, falls)
    for key in ("warmup_steps", "decay_steps"):
        require(getattr(algo.mu, key) >= 0, f"algo.mu.{key}", getattr(algo.mu, key), "must be 0 or more")


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
