"""Combinations of values that cannot work are refused here, before anything is loaded, with what to change.

`validate` raises UserError for what is impossible and returns sentences about what is merely unwise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from agentrl.config.load import suggest
from agentrl.config.schema import (
    Anneal,
    Config,
    Ftrl,
    Grpo,
    Hardware,
    Minihop,
    Pact,
    Reward,
    Rollout,
    Sft,
    ToolHop,
    Trainer,
)
from agentrl.errors import UserError
from agentrl.traces.records import TRACE_PARTS

CHOICES: dict[str, tuple[str, ...]] = {
    "algo.advantage.kind": ("hard_credit", "trajectory"),
    "algo.kl_context": ("ratio", "prompt"),
    "algo.loss_aggregation": ("sequence", "token"),
    "algo.trace.rendering": ("message", "turns"),
    "algo.schedule.reasoning": ("segment", "token", "full_token", "fixed", "none"),
    "algo.schedule.call": ("scale", "token", "fixed", "none"),
    "model.family": ("tiny", "qwen2.5", "qwen3", "phi3", "phi4", "llama3", "other"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "model.attn_implementation": ("sdpa", "eager", "flash_attention_2"),
    "model.reasoning": ("content", "think"),
    "bench.scenario": ("direct", "mandatory", "free"),
    "bench.rule": ("toolhop", "ftrl", "strict"),
    "bench.answer_tag": ("train", "always", "never"),
    "rollout.engine": ("trl",),
    "reward.name": ("matching", "answer"),
    "reward.matching": ("hungarian", "greedy"),
    "anneal.kind": ("linear", "constant", "cosine", "steps"),
    "trainer.lr_schedule": ("constant", "linear", "cosine"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.vllm": ("off", "colocate", "server"),
    "tracker.name": ("none", "wandb", "wandb_offline", "trackio"),
}
SFT_COMPONENTS = ("reasoning", "tool_call", "answer")


def validate(config: Config) -> list[str]:
    """Raise UserError for the first impossible value or combination; return warnings."""
    _choices(config)
    _run(config)
    _rollout(config.rollout)
    _reward(config.reward)
    _anneal(config.anneal)
    _trainer(config.trainer, config.hardware)
    _eval(config)
    _algo(config)
    _bench(config)
    _batches(config)
    return _machine(config)


def group_size(config: Config) -> int:
    """Sequences per prompt in one update: K, or 1 where there are no rollouts."""
    return 1 if isinstance(config.algo, Sft) else config.rollout.num_generations


def _require(condition: bool, key: str, value: Any, rule: str) -> None:
    """`rule` says what the value must be, and so what to change. NaN fails every comparison and is refused too."""
    if not condition:
        raise UserError(f"{key}={_show(value)}: {rule}")


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _choices(config: Config) -> None:
    for key, allowed in CHOICES.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)  # a variant of algo or bench lacks the other variants' keys
        if value is not None and value not in allowed:
            raise UserError(f"{key}={value} is not a choice{suggest(value, list(allowed))}")


def _run(config: Config) -> None:
    for key in ("name", "run_id"):
        value = getattr(config, key)
        if value is not None:
            plain = value not in ("", ".", "..") and not set(value) & set("/\\\0\n")
            _require(plain, key, repr(value), "must be a plain directory name, without '/'")
    _require(config.runs_dir != "", "runs_dir", "''", "must name a directory")
    _require(0 <= config.seed < 2**32, "seed", config.seed, "must lie between 0 and 4294967295 (numpy's range)")
    lora = config.model.lora
    _require(lora.r >= 1, "model.lora.r", lora.r, "must be at least 1")
    _require(lora.alpha >= 1, "model.lora.alpha", lora.alpha, "must be at least 1")
    _require(0 <= lora.dropout < 1, "model.lora.dropout", lora.dropout, "must lie in [0, 1)")
    targets = lora.target_modules
    _require(targets is None or len(targets) > 0, "model.lora.target_modules", targets, "name modules, or set null")


def _rollout(rollout: Rollout) -> None:
    temperature_rule = "rollouts must be sampled: greedy copies have no advantage; set above 0 (the paper: 1)"
    _require(0 < rollout.temperature < math.inf, "rollout.temperature", rollout.temperature, temperature_rule)
    _require(0 < rollout.top_p <= 1, "rollout.top_p", rollout.top_p, "must lie in (0, 1]")
    for key in ("max_turns", "max_prompt_tokens", "max_completion_tokens"):
        _require(getattr(rollout, key) >= 1, f"rollout.{key}", getattr(rollout, key), "must be at least 1")
    turn, budget = rollout.max_turn_tokens, rollout.max_completion_tokens
    turn_rule = f"must lie between 1 and rollout.max_completion_tokens={budget}, or be null"
    _require(turn is None or 1 <= turn <= budget, "rollout.max_turn_tokens", turn, turn_rule)


def _reward(reward: Reward) -> None:
    penalty = reward.unmatched_penalty
    _require(0 <= penalty < math.inf, "reward.unmatched_penalty", penalty, "must be 0 or more")


def _anneal(anneal: Anneal) -> None:
    for key in ("start", "end"):
        _require(0 <= getattr(anneal, key) <= 1, f"anneal.{key}", getattr(anneal, key), "must lie in [0, 1]")
    start_rule = f"must be at least anneal.end={anneal.end}: the tool-call scale only falls; swap the two"
    _require(anneal.start >= anneal.end, "anneal.start", anneal.start, start_rule)
    _require(0 < anneal.horizon <= 1, "anneal.horizon", anneal.horizon, "must lie in (0, 1]; 1 is the whole run")
    _require(anneal.kind != "steps" or anneal.num_steps >= 2, "anneal.num_steps", anneal.num_steps, "must be 2 or more")


def _trainer(trainer: Trainer, hardware: Hardware) -> None:
    for key in ("prompts_per_batch", "minibatch_prompts", "micro_batch", "keep_checkpoints"):
        _require(getattr(trainer, key) >= 1, f"trainer.{key}", getattr(trainer, key), "must be at least 1")
    for key in ("warmup_steps", "save_steps", "log_rollouts"):
        _require(getattr(trainer, key) >= 0, f"trainer.{key}", getattr(trainer, key), "must be 0 or more")
    for key in ("learning_rate", "max_grad_norm"):
        _require(0 < getattr(trainer, key) < math.inf, f"trainer.{key}", getattr(trainer, key), "must be above 0")
    _require(0 <= trainer.weight_decay < math.inf, "trainer.weight_decay", trainer.weight_decay, "must be 0 or more")
    steps = trainer.max_steps
    _require(steps == -1 or steps >= 1, "trainer.max_steps", steps, "must be 1 or more, or -1 to let epochs decide")
    epochs_ok = steps != -1 or 0 < trainer.epochs < math.inf
    _require(epochs_ok, "trainer.epochs", trainer.epochs, "must be above 0 when trainer.max_steps is -1")
    _require(hardware.processes >= 1, "hardware.processes", hardware.processes, "must be at least 1")
    threads_ok = hardware.threads is None or hardware.threads >= 1
    _require(threads_ok, "hardware.threads", hardware.threads, "must be at least 1, or null for all cores")


def _eval(config: Config) -> None:
    limit = config.eval.limit
    _require(limit is None or limit >= 1, "eval.limit", limit, "must be at least 1, or null for all tasks")
    for key in ("samples", "batch"):
        _require(getattr(config.eval, key) >= 1, f"eval.{key}", getattr(config.eval, key), "must be at least 1")
    _require(0 <= config.eval.temperature < math.inf, "eval.temperature", config.eval.temperature, "must be 0 or more")


def _algo(config: Config) -> None:
    algo = config.algo
    if isinstance(algo, Sft):
        _require(len(algo.components) > 0, "algo.components", algo.components, "name at least one component")
        for part in algo.components:
            _require(part in SFT_COMPONENTS, "algo.components", part, f"choose from {', '.join(SFT_COMPONENTS)}")
        return
    k = config.rollout.num_generations
    group_rule = "advantages compare rollouts of one prompt; set 2 or more (the paper: 8)"
    _require(k >= 2, "rollout.num_generations", k, group_rule)
    for key in ("kl_coef", "entropy_coef"):
        _require(0 <= getattr(algo, key) < math.inf, f"algo.{key}", getattr(algo, key), "must be 0 or more")
    _require(0 < algo.clip_eps < 1, "algo.clip_eps", algo.clip_eps, "must lie in (0, 1)")
    advantage = algo.advantage
    _require(0 <= advantage.gamma <= 1, "algo.advantage.gamma", advantage.gamma, "must lie in [0, 1]")
    _require(0 < advantage.scale < math.inf, "algo.advantage.scale", advantage.scale, "must be above 0")
    _require(0 < advantage.eps < math.inf, "algo.advantage.eps", advantage.eps, "must be above 0")
    if isinstance(algo, Pact):
        _pact(algo)


def _pact(algo: Pact) -> None:
    _require(0 <= algo.q <= 1, "algo.q", algo.q, "a probability: must lie in [0, 1] (the paper: 0.4)")
    for key in ("rl_coef", "sft_coef"):
        _require(0 <= getattr(algo, key) < math.inf, f"algo.{key}", getattr(algo, key), "must be 0 or more")
    idle = algo.rl_coef == 0 and (algo.sft_coef == 0 or algo.q == 1)
    _require(
        not idle, "algo.rl_coef", algo.rl_coef, "nothing is left to train on; raise it, or sft_coef with q below 1"
    )
    points = algo.schedule.switch_points
    ascending = len(points) == 4 and all(0 <= p <= 1 for p in points) and points == sorted(points)
    points_rule = "four ascending fractions in [0, 1], one per drop L4>L3>L2>L1>L0"
    _require(ascending, "algo.schedule.switch_points", points, points_rule)
    _require(algo.trace.max_tokens >= 1, "algo.trace.max_tokens", algo.trace.max_tokens, "must be at least 1")
    for part in algo.trace.drop:
        _require(part in TRACE_PARTS, "algo.trace.drop", part, f"choose from {', '.join(TRACE_PARTS)}")


def _bench(config: Config) -> None:
    bench = config.bench
    if isinstance(bench, Minihop):
        _require(bench.path is None, "bench.path", bench.path, "minihop is generated; set null, or bench=toolhop")
        for key in ("train_tasks", "test_tasks"):
            _require(getattr(bench, key) >= 1, f"bench.{key}", getattr(bench, key), "must be at least 1")
        for key in ("train_hops", "test_hops"):
            shares = getattr(bench, key)
            whole = len(shares) == 4 and all(s >= 0 for s in shares) and abs(sum(shares) - 1) < 1e-6
            _require(whole, f"bench.{key}", shares, "four shares (1 to 4 hops), none negative, that sum to 1")
    if isinstance(bench, ToolHop):
        _toolhop(config, bench)
    if isinstance(bench, Ftrl):
        _require(0 < bench.test_fraction < 1, "bench.test_fraction", bench.test_fraction, "must lie in (0, 1)")
        exists_rule = "no such file or directory; give FTRL's"
        _require(Path(bench.path).expanduser().exists(), "bench.path", bench.path, exists_rule)


def _toolhop(config: Config, bench: ToolHop) -> None:
    _require(0 < bench.test_fraction < 1, "bench.test_fraction", bench.test_fraction, "must lie in (0, 1)")
    if bench.path is not None:
        exists_rule = "no such file; give the path of ToolHop.json, or null to download it from the hub"
        _require(Path(bench.path).expanduser().is_file(), "bench.path", bench.path, exists_rule)
    if bench.scenario == "direct":
        tools = "no tools means no expert traces; set bench.scenario=mandatory or free"
        _require(isinstance(config.algo, Grpo), "bench.scenario", bench.scenario, f"algo={config.algo.name}: {tools}")
        answer_rule = "no tools means no calls to match; set reward=answer, or bench.scenario=mandatory or free"
        _require(config.reward.name == "answer", "bench.scenario", bench.scenario, answer_rule)


def _batches(config: Config) -> None:
    """Whole groups on every process, whole minibatches in a rollout batch, whole micro-batches in a minibatch."""
    trainer, processes, k = config.trainer, config.hardware.processes, group_size(config)
    prompts, mini, micro = trainer.prompts_per_batch, trainer.minibatch_prompts, trainer.micro_batch
    mini_rule = f"must divide trainer.prompts_per_batch={prompts}; nearest is {_divisor(prompts, mini)}"
    _require(prompts % mini == 0, "trainer.minibatch_prompts", mini, mini_rule)
    spread = f"must be a multiple of hardware.processes={processes}, so that each process holds whole groups"
    _require(prompts % processes == 0, "trainer.prompts_per_batch", prompts, spread)
    sequences = mini * k
    per_process = sequences // processes
    _require(
        sequences % (micro * processes) == 0,
        "trainer.micro_batch",
        micro,
        f"an update has {sequences} sequences (minibatch_prompts={mini} x {k}) on {processes} process(es), which "
        + (
            f"{micro} does not divide; nearest is {_divisor(per_process, micro)}"
            if per_process * processes == sequences
            else f"does not split evenly; make trainer.minibatch_prompts a multiple of {processes}"
        ),
    )


def _divisor(number: int, near: int) -> int:
    """The divisor of `number` closest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))


def _machine(config: Config) -> list[str]:
    hardware, model, warnings = config.hardware, config.model, []
    if isinstance(config.algo, Pact) and config.algo.sft_coef > 0 and config.rollout.temperature != 1:
        warnings.append(
            f"rollout.temperature={config.rollout.temperature:g}: TRL divides all logits by it, those of the SFT term "
            "too; 1 is the paper's"
        )
    if hardware.device == "cpu":
        vllm_rule = "vLLM rollouts need a GPU; set hardware.vllm=off, or hardware=gpu"
        _require(hardware.vllm == "off", "hardware.vllm", hardware.vllm, vllm_rule)
        flash = model.attn_implementation != "flash_attention_2"
        flash_rule = "needs a GPU; set model.attn_implementation=sdpa, or hardware=gpu"
        _require(flash, "model.attn_implementation", model.attn_implementation, flash_rule)
        _require(model.dtype != "float16", "model.dtype", model.dtype, "has no CPU kernels; set model.dtype=float32")
        if hardware.bf16:
            warnings.append("hardware.bf16=true on a CPU is several times slower than float32 unless it has AMX")
    if model.dtype != "float32" and not model.lora.enabled and config.trainer.learning_rate < 1e-5:
        warnings.append(
            f"model.dtype={model.dtype}: updates of size {config.trainer.learning_rate:g} are lost to rounding; "
            "keep model.dtype=float32 (hardware.bf16 still computes in bfloat16), or train adapters (model/lora=on)"
        )
    if hardware.accelerate_config is not None:
        file = Path(hardware.accelerate_config).expanduser()
        _require(file.is_file(), "hardware.accelerate_config", hardware.accelerate_config, "no such file")
    if model.path.startswith(("/", "./", "../", "~")):
        checkpoint = (Path(model.path).expanduser() / "config.json").is_file()
        path_rule = (
            "no checkpoint there (config.json is missing); give a directory made by save_pretrained, or a hub id"
        )
        _require(checkpoint, "model.path", model.path, path_rule)
    return warnings
